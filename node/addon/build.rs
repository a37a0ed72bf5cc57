//! Sets the linker's options for a library that Node.js loads.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    napi_build::setup();
}
