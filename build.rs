//! Generates code for `proto/` from its descriptors, so that a build needs neither `protoc` nor a
//! parser. `tests/proto.rs` holds the descriptors against the sources, and writes them.

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = std::fs::read("proto/descriptors.bin")?;
    prost_build::Config::new()
        // Payloads are slices of the received carrier message, never copies of it.
        .bytes(["."])
        .compile_fds(FileDescriptorSet::decode(&*descriptors)?)?;
    Ok(())
}
