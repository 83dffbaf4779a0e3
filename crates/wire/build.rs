//! Compiles the .proto files with a protobuf compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["record.proto", "gossip.proto", "node.proto", "tunnel.proto", "sidecar.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".atoll.record.v1.Record.body")
        .bytes(".atoll.record.v1.SignedRecord.record")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
