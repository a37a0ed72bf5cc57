//! Sets of ports.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use pyo3::{
    basic::CompareOp,
    prelude::*,
    types::{PyIterator, PyList, PyType},
};

use crate::{argument, error};

/// A set of ports, 1 to 65535.
#[pyclass(frozen, module = "portlock")]
pub(crate) struct PortSet {
    pub(crate) ports: portlock::PortSet,
}

impl From<portlock::PortSet> for PortSet {
    fn from(ports: portlock::PortSet) -> Self {
        Self { ports }
    }
}

#[pymethods]
impl PortSet {
    #[new]
    #[pyo3(signature = (ports=None, /))]
    fn new(ports: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let ports = ports.map(argument::ports).transpose()?;
        Ok(ports.unwrap_or_default().into())
    }

    fn __len__(&self) -> usize {
        self.ports.len()
    }

    fn __contains__(&self, port: &Bound<'_, PyAny>) -> bool {
        let number = argument::number(port).ok();
        let port = number.and_then(|number| u16::try_from(number).ok());
        port.is_some_and(|port| self.ports.contains(port))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, &self.ports)?.try_iter()
    }

    fn __or__(&self, other: &Bound<'_, Self>) -> Self {
        self.ports.union(&other.get().ports).into()
    }

    fn __and__(&self, other: &Bound<'_, Self>) -> Self {
        self.ports.intersection(&other.get().ports).into()
    }

    fn __sub__(&self, other: &Bound<'_, Self>) -> Self {
        self.ports.difference(&other.get().ports).into()
    }

    fn isdisjoint(&self, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.ports.is_disjoint(&argument::ports(other)?))
    }

    fn __richcmp__(&self, other: &Bound<'_, Self>, op: CompareOp) -> bool {
        let other = &other.get().ports;
        let is_subset = |a: &portlock::PortSet, b| a.difference(b).is_empty();
        match op {
            CompareOp::Eq => &self.ports == other,
            CompareOp::Ne => &self.ports != other,
            CompareOp::Le => is_subset(&self.ports, other),
            CompareOp::Lt => &self.ports != other && is_subset(&self.ports, other),
            CompareOp::Ge => is_subset(other, &self.ports),
            CompareOp::Gt => &self.ports != other && is_subset(other, &self.ports),
        }
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.ports.hash(&mut hasher);
        hasher.finish()
    }

    fn __str__(&self) -> String {
        self.ports.to_string()
    }

    fn __repr__(&self) -> String {
        format!("PortSet('{}')", self.ports)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (String,)) {
        (slf.get_type(), (slf.get().ports.to_string(),))
    }
}

/// Returns the first and the last port that the system assigns to clients.
#[pyfunction]
pub(crate) fn ephemeral_port_range(py: Python<'_>) -> PyResult<(u16, u16)> {
    let range = portlock::ephemeral_port_range();
    let range = range.map_err(|error| error::immediate(py, &error))?;
    Ok(range.into_inner())
}

/// Returns the ports that this machine leaves to servers.
#[pyfunction]
pub(crate) fn server_ports(py: Python<'_>) -> PyResult<PortSet> {
    let ports = portlock::PortSet::server_ports();
    let ports = ports.map_err(|error| error::immediate(py, &error))?;
    Ok(ports.into())
}
