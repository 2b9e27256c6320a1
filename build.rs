//! Compiles `proto/` with protox, so that a fresh machine needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 3] = [
        "proto/message.proto",
        "proto/noise.proto",
        "proto/payload.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    prost_build::Config::new()
        // Payloads are slices of the received carrier message, never copies of it.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
