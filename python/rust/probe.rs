//! The probe alone: a port that is bound, and not leased.

use portlock::BindFreePort as Probe;
use pyo3::{prelude::*, types::PyTuple};

use crate::{argument, error, request};

/// A free port, bound until it is released.
#[pyclass(module = "portlock")]
pub(crate) struct BindFreePort {
    port: u16,
    probe: Option<Probe>,
}

#[pymethods]
impl BindFreePort {
    #[new]
    #[pyo3(signature = (start=None, stop=None, *, ports=None))]
    fn new(
        py: Python<'_>,
        start: Option<&Bound<'_, PyAny>>,
        stop: Option<&Bound<'_, PyAny>>,
        ports: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let ports = request::ports(py, start, stop, ports)?;
        let probe = py.detach(|| Probe::new(ports));
        let probe = probe.map_err(|error| error::immediate(py, &error))?;
        Ok(Self {
            port: probe.port(),
            probe: Some(probe),
        })
    }

    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    fn __index__(&self) -> u16 {
        self.port
    }

    fn __int__(&self) -> u16 {
        self.port
    }

    fn __str__(&self) -> String {
        self.port.to_string()
    }

    fn __format__<'py>(&self, py: Python<'py>, spec: &str) -> PyResult<Bound<'py, PyAny>> {
        argument::format(py, self.port, spec)
    }

    fn __repr__(&self) -> String {
        let state = if self.probe.is_some() {
            ""
        } else {
            " (released)"
        };
        format!("<BindFreePort {}{state}>", self.port)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&mut self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release(py)
    }

    /// Closes the socket.
    fn release(&mut self, py: Python<'_>) -> PyResult<()> {
        let outcome = self.probe.take().map_or(Ok(()), Probe::release);
        outcome.map_err(|error| error::immediate(py, &error))
    }
}
