//! Compiles `proto/` in pure Rust (protox), so that a fresh machine needs no protoc.

use std::path::PathBuf;

const PROTOS: [&str; 7] = [
    "etcd/kv.proto",
    "etcd/auth.proto",
    "etcd/rpc.proto",
    "etcd/v3lock.proto",
    "etcd/v3election.proto",
    "command.proto",
    "peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(PROTOS)?;
    // With their options, which hold the paths of the JSON gateway; served by gRPC reflection too.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut descriptors = compiler.file_descriptor_set();
    descriptors
        .file
        .retain(|file| !file.package().starts_with("google."));
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::codec::ProtobufCodec")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
