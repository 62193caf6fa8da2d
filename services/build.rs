//! Compiles the proto file of the gRPC door, without `protoc`.
//! In: proto/budget/v1/budget.proto. Out: messages that are also JSON, services, clients, and the file's descriptor.

use std::error::Error;
use std::path::PathBuf;

const FILE: &str = "budget/v1/budget.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = protox::Compiler::new(["proto"])?;
    files.include_source_info(true).include_imports(true).open_file(FILE)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?);
    std::fs::write(out.join("budget.bin"), files.encode_file_descriptor_set())?;
    let files = files.file_descriptor_set();

    // A message is JSON as REST has it: what is not there is left out, and what is unknown is passed over.
    let mut builder = tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]");
    for file in &files.file {
        for message in &file.message_type {
            for field in message.field.iter().filter(|field| field.proto3_optional()) {
                let path = format!("{}.{}.{}", file.package(), message.name(), field.name());
                builder = builder.field_attribute(path, "#[serde(skip_serializing_if = \"Option::is_none\")]");
            }
        }
    }
    Ok(builder.compile_fds(files)?)
}
