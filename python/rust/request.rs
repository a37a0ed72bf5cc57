//! Requests: which ports, on which addresses, and how long to wait.

use std::{path::PathBuf, sync::Arc, time::Duration};

use portlock::{Builder, Error, PortSet};
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyInt};

use crate::{argument, descriptor, error, lease::Handle, wait::Wait};

/// Default timeout of a lease.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The default range of ports, as in the recipe.
const DEFAULT_START: u16 = 4000;
const DEFAULT_STOP: u16 = 6000;

/// A request for leases: the arguments of `FreePort`.
#[pyclass(frozen, module = "portlock._native")]
pub(crate) struct Request {
    builder: Builder,
    timeout: Duration,
    wait: Arc<Wait>,
    /// Whether no host is named.
    pub(crate) is_everywhere: bool,
}

#[pymethods]
impl Request {
    #[new]
    #[pyo3(signature = (
        start=None, stop=None, *, ports=None, hosts=None, protocol="tcp", timeout=None, label=None,
        name=None, root=None, prefer=None, reuse_address=None, hold_socket=false, lock_dir=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the caller's")]
    pub(crate) fn new(
        py: Python<'_>,
        start: Option<&Bound<'_, PyAny>>,
        stop: Option<&Bound<'_, PyAny>>,
        ports: Option<&Bound<'_, PyAny>>,
        hosts: Option<&Bound<'_, PyAny>>,
        protocol: &str,
        timeout: Option<&Bound<'_, PyAny>>,
        label: Option<&Bound<'_, PyAny>>,
        name: Option<&Bound<'_, PyAny>>,
        root: Option<PathBuf>,
        prefer: Option<&Bound<'_, PyAny>>,
        reuse_address: Option<bool>,
        hold_socket: bool,
        lock_dir: Option<PathBuf>,
    ) -> PyResult<Self> {
        let names_no_ports = ports.is_none() && start.is_none() && stop.is_none();
        let ports = self::ports(py, start, stop, ports)?;
        let timeout = timeout.map_or(Ok(DEFAULT_TIMEOUT), argument::seconds)?;
        let mut builder = Builder::new()
            .protocol(argument::protocol(protocol)?)
            .timeout(timeout)
            .hold_socket(hold_socket);
        // A name has the same port in all languages, so the recipe's range is not its default.
        if !(names_no_ports && name.is_some()) {
            builder = builder.ports(ports);
        }
        if let Some(name) = name {
            builder = builder.name(argument::text(name)?);
        }
        if let Some(root) = root {
            builder = builder.root(root);
        }
        let hosts = hosts.map(argument::hosts).transpose()?.unwrap_or_default();
        let is_everywhere = hosts.is_empty();
        for host in hosts {
            builder = builder.host(host);
        }
        if let Some(label) = label {
            builder = builder.label(argument::text(label)?);
        }
        if let Some(prefer) = prefer {
            builder = builder.prefer(argument::text(prefer)?);
        }
        if let Some(reuse_address) = reuse_address {
            builder = builder.reuse_address(reuse_address);
        }
        if let Some(lock_dir) = lock_dir {
            builder = builder.lock_dir(lock_dir);
        }
        Ok(Self::of(builder, timeout, is_everywhere))
    }

    /// Returns a request with the same arguments, which [`stop`](Self::stop) ends separately.
    fn copy(&self) -> Self {
        Self::of(self.builder.clone(), self.timeout, self.is_everywhere)
    }

    /// Leases a port, after waiting for one if necessary.
    fn one(&self, py: Python<'_>) -> PyResult<Handle> {
        self.acquire(py).map(|lease| self.handle(lease))
    }

    /// Leases a port if one is free now.
    fn try_one(&self, py: Python<'_>) -> PyResult<Handle> {
        let outcome = py.detach(|| self.builder.try_acquire());
        let lease = outcome.map_err(|error| error::immediate(py, &error))?;
        Ok(self.handle(lease))
    }

    /// Leases a port for another process, and returns its number.
    fn one_for(&self, py: Python<'_>, pid: &Bound<'_, PyAny>) -> PyResult<u16> {
        let pid = argument::pid(pid)?;
        self.run(py, |builder| builder.acquire_for(pid))
    }

    /// Leases a port, and returns the lease and the descriptor of a socket that listens on it.
    fn listen(&self, py: Python<'_>) -> PyResult<(Handle, i64)> {
        let (lease, listener) = self.run(py, Builder::listen)?;
        Ok((self.handle(lease), descriptor::of_listener(listener)))
    }

    /// Leases several ports, or none.
    fn many(&self, py: Python<'_>, n: &Bound<'_, PyAny>) -> PyResult<Vec<Handle>> {
        let n = argument::count(n)?;
        self.several(py, |builder| builder.acquire_many(n))
    }

    /// Leases several ports that follow each other, or none.
    fn block(&self, py: Python<'_>, n: &Bound<'_, PyAny>) -> PyResult<Vec<Handle>> {
        let n = argument::count(n)?;
        self.several(py, |builder| builder.acquire_block(n))
    }

    /// Leases the ports at several offsets from one of them, or none.
    fn offsets(&self, py: Python<'_>, offsets: &Bound<'_, PyAny>) -> PyResult<Vec<Handle>> {
        let offsets = argument::offsets(offsets)?;
        self.several(py, |builder| builder.acquire_offsets(&offsets))
    }

    /// Returns whether a port could be leased now.
    fn is_free(&self, py: Python<'_>) -> PyResult<bool> {
        use portlock::ErrorKind::PermissionDenied;
        match py.detach(|| self.builder.check()) {
            Ok(()) => Ok(true),
            Err(error) if error.is_busy() || error.kind() == PermissionDenied => Ok(false),
            Err(error) => Err(error::immediate(py, &error)),
        }
    }

    /// Ends the wait of another thread.
    fn stop(&self) {
        self.wait.stop();
    }
}

impl Request {
    fn of(builder: Builder, timeout: Duration, is_everywhere: bool) -> Self {
        let wait = Arc::new(Wait::default());
        let observer = Arc::clone(&wait);
        Self {
            builder: builder.on_wait(move |_| observer.goes_on()),
            timeout,
            wait,
            is_everywhere,
        }
    }

    /// Leases a port, after waiting for one if necessary.
    pub(crate) fn acquire(&self, py: Python<'_>) -> PyResult<portlock::FreePort> {
        self.run(py, Builder::acquire)
    }

    fn handle(&self, lease: portlock::FreePort) -> Handle {
        Handle::new(lease, self.is_everywhere)
    }

    fn several(
        &self,
        py: Python<'_>,
        lease: impl FnOnce(&Builder) -> portlock::Result<Vec<portlock::FreePort>> + Send,
    ) -> PyResult<Vec<Handle>> {
        let leases = self.run(py, lease)?;
        Ok(leases.into_iter().map(|lease| self.handle(lease)).collect())
    }

    /// Runs a call that may wait, without the interpreter lock.
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Builder) -> portlock::Result<T> + Send,
    ) -> PyResult<T> {
        let outcome = py.detach(|| call(&self.builder));
        outcome.map_err(|error| self.exception(py, &error))
    }

    #[cold]
    fn exception(&self, py: Python<'_>, error: &Error) -> PyErr {
        let raised = self.wait.take_raised();
        raised.unwrap_or_else(|| error::of(py, error, self.timeout))
    }
}

/// Returns the ports of `ports`, or else from `start` to `stop`.
pub(crate) fn ports(
    py: Python<'_>,
    start: Option<&Bound<'_, PyAny>>,
    stop: Option<&Bound<'_, PyAny>>,
    ports: Option<&Bound<'_, PyAny>>,
) -> PyResult<PortSet> {
    match (ports, start, stop) {
        (None, None, None) => Ok((DEFAULT_START..=DEFAULT_STOP).into()),
        (None, start, stop) => {
            let bound = |port: u16| PyInt::new(py, port).into_any();
            let (first, last) = (bound(DEFAULT_START), bound(DEFAULT_STOP));
            argument::range(start.unwrap_or(&first), stop.unwrap_or(&last))
        }
        (Some(ports), None, None) => argument::ports(ports),
        (Some(_), _, _) => {
            let message = "the ports are named twice, by ports and by start and stop";
            Err(PyTypeError::new_err(message))
        }
    }
}

/// Asks a port server for a port for the process `pid`.
#[pyfunction]
pub(crate) fn get_port_from_port_server(
    py: Python<'_>,
    address: &str,
    pid: &Bound<'_, PyAny>,
) -> PyResult<u16> {
    let pid = argument::pid(pid)?;
    let outcome =
        py.detach(|| portlock::compat::portpicker::get_port_from_port_server(address, pid));
    outcome.map_err(|error| error::immediate(py, &error))
}
