//! What a lease costs beside the bare system calls that it is made of. On Linux: those of
//! other systems are others, and have not been measured.

#[cfg(target_os = "linux")]
#[path = "lease/linux.rs"]
mod linux;

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
    #[cfg(not(target_os = "linux"))]
    eprintln!("left out: it is of Linux");
}
