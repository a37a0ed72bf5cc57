//! The lease.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use portlock::{ErrorKind, FreePort};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{argument, descriptor, error, request::Request};

/// Number of forks between the process that imported the module and this one.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Notes that this process is a forked child.
#[pyfunction]
pub(crate) fn forked() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// A lease on its way from a [`Request`] to a [`Lease`].
#[pyclass(module = "portlock._native")]
pub(crate) struct Handle {
    lease: Option<FreePort>,
    is_everywhere: bool,
}

impl Handle {
    pub(crate) fn new(lease: FreePort, is_everywhere: bool) -> Self {
        Self {
            lease: Some(lease),
            is_everywhere,
        }
    }
}

/// A leased port: the base of `portlock.FreePort`, which adds what only a Python class can have.
#[pyclass(subclass, module = "portlock._native")]
pub(crate) struct Lease {
    port: u16,
    address: SocketAddr,
    /// Whether it is free on every address.
    is_everywhere: bool,
    generation: u32,
    lease: Option<FreePort>,
}

#[pymethods]
impl Lease {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let py = args.py();
        if let Ok(handle) = args.get_borrowed_item(0)
            && let Ok(handle) = handle.cast::<Handle>()
        {
            let mut handle = handle.borrow_mut();
            let lease = handle.lease.take();
            let lease = lease.ok_or_else(|| PyTypeError::new_err("the lease is in use"))?;
            return Ok(Self::of(lease, handle.is_everywhere));
        }
        let request = py.get_type::<Request>().call(args, kwargs)?;
        let request = request.cast::<Request>()?.get();
        Ok(Self::of(request.acquire(py)?, request.is_everywhere))
    }

    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    #[getter]
    fn addr(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.port)
    }

    /// Whether this process has the lease and has not released it.
    #[getter]
    fn is_leased(&self) -> bool {
        self.lease.is_some() && self.generation == generation()
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

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let name = slf.get_type().name()?;
        let this = slf.borrow();
        let state = match &this.lease {
            Some(_) if this.generation == generation() => "",
            Some(_) => " (a forked copy)",
            None => " (released)",
        };
        Ok(format!("<{name} {}{state}>", this.port))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&mut self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        if self.generation != generation() {
            // The lease continues in the process that has it.
            self.lease = None;
            return Ok(());
        }
        self.release(py)
    }

    /// Ends the lease.
    fn release(&mut self, py: Python<'_>) -> PyResult<()> {
        let outcome = self.lease.take().map_or(Ok(()), FreePort::release);
        outcome.map_err(|error| error::immediate(py, &error))
    }

    /// Transfers the lease to a running process, and returns the port's number.
    fn delegate_to(&mut self, py: Python<'_>, pid: &Bound<'_, PyAny>) -> PyResult<u16> {
        let pid = argument::pid(pid)?;
        let outcome = self.take()?.delegate_to(pid);
        outcome.map_err(|error| error::immediate(py, &error))
    }

    /// Returns the descriptor that holds the lease.
    fn detach_fd(&mut self, py: Python<'_>) -> PyResult<i64> {
        descriptor::of_lease(py, || self.take())
    }

    /// Waits until a server accepts connections.
    #[pyo3(signature = (timeout=None))]
    fn wait_until_listening(
        slf: &Bound<'_, Self>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let addresses = slf.borrow().addresses();
        retry(slf.py(), timeout, || {
            Ok(portlock::wait_until_listening(
                &addresses[..],
                Duration::ZERO,
            ))
        })
    }

    /// Waits until the server of a process accepts connections, and returns the pid and the program of
    /// its process, where they can be seen.
    #[pyo3(signature = (pid, timeout=None))]
    fn wait_for_server(
        slf: &Bound<'_, Self>,
        pid: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(u32, String)>> {
        let pid = argument::pid(pid)?;
        let server = retry(slf.py(), timeout, || {
            let this = slf.borrow();
            let lease = this.lease.as_ref();
            let lease = lease.ok_or_else(|| error::released(this.port))?;
            Ok(lease.wait_for_server(pid, Duration::ZERO))
        })?;
        Ok(server.process.map(|process| (process.pid, process.program)))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(format!(
            "the lease of port {} cannot be copied or pickled: it belongs to this process; pass \
             int(port) and keep the lease here, or call delegate_to(pid) or detach_fd()",
            self.port
        )))
    }
}

/// Default timeout of a wait for a server.
const DEFAULT_READINESS: Duration = Duration::from_secs(30);

/// Longest pause between two attempts to connect to a server.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Retries until an attempt ends otherwise than with a timeout, or the time is over. Between attempts, which
/// take microseconds, it does not hold the interpreter lock, and Ctrl-C can interrupt it.
fn retry<T>(
    py: Python<'_>,
    timeout: Option<&Bound<'_, PyAny>>,
    mut attempt: impl FnMut() -> PyResult<portlock::Result<T>>,
) -> PyResult<T> {
    let timeout = timeout.map_or(Ok(DEFAULT_READINESS), argument::seconds)?;
    let (start, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        let error = match attempt()? {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let left = timeout.saturating_sub(start.elapsed());
        if error.kind() != ErrorKind::Timeout || left.is_zero() {
            return Err(error::of(py, &error, timeout));
        }
        py.detach(|| thread::sleep(pause.min(left)));
        py.check_signals()?;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

impl Lease {
    fn of(lease: FreePort, is_everywhere: bool) -> Self {
        Self {
            port: lease.port(),
            address: lease.addr(),
            is_everywhere,
            generation: generation(),
            lease: Some(lease),
        }
    }

    /// Takes the lease out, to end or transfer it.
    fn take(&mut self) -> PyResult<FreePort> {
        self.lease.take().ok_or_else(|| error::released(self.port))
    }

    /// Returns the addresses at which a server on this port may be reached.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = vec![self.address];
        if self.is_everywhere {
            addresses.push((Ipv6Addr::LOCALHOST, self.port).into());
        }
        addresses
    }
}
