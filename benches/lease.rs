//! Compares the cost of a lease to its bare system calls. Linux only: other systems use
//! different calls, which have not been measured.

#[cfg(target_os = "linux")]
#[path = "lease/linux.rs"]
mod linux;

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
    #[cfg(not(target_os = "linux"))]
    eprintln!("skipped: this benchmark is for Linux");
}
