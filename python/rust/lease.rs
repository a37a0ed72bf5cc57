//! The lease.

use std::{
    net::{Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use portlock::{ErrorKind, FreePort};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{argument, descriptor, error, request::Request, wait::Wait};

/// Number of forks that this process is away from the one that imported the module.
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
    /// It is free on every address.
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

    /// Gives the lease to a running process, and returns the port's number.
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
        let timeout = timeout.map_or(Ok(DEFAULT_READINESS), argument::seconds)?;
        let addresses = slf.borrow().addresses();
        wait_until_listening(slf.py(), &addresses, timeout)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(format!(
            "the lease of port {} cannot be copied or pickled: it belongs to this process; pass \
             int(port) and keep the lease here, or call delegate_to(pid) or detach_fd()",
            self.port
        )))
    }
}

/// How long a server is waited for unless the caller says otherwise.
const DEFAULT_READINESS: Duration = Duration::from_secs(30);

/// Longest time between two checks for signals.
const SLICE: Duration = Duration::from_millis(50);

/// Waits until a server accepts connections at one of the addresses.
fn wait_until_listening(
    py: Python<'_>,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> PyResult<()> {
    let (wait, start) = (Wait::default(), Instant::now());
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        let slice = left.min(SLICE);
        match py.detach(|| portlock::wait_until_listening(addresses, slice)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Timeout && slice < left => {}
            Err(error) => return Err(error::of(py, &error, timeout)),
        }
        if let ControlFlow::Break(()) = wait.goes_on() {
            return Err(wait.take_raised().unwrap_or_else(|| error::released(0)));
        }
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

    /// Takes the lease, which ends or goes elsewhere.
    fn take(&mut self) -> PyResult<FreePort> {
        self.lease.take().ok_or_else(|| error::released(self.port))
    }

    /// Where a server on this port may be reached.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = vec![self.address];
        if self.is_everywhere {
            addresses.push((Ipv6Addr::LOCALHOST, self.port).into());
        }
        addresses
    }
}
