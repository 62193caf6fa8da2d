//! TLS, if it is configured.
//! In: PEM files. Out: an acceptor of connections, or the problem with the files.

use std::sync::Arc;

use perkey::unstable::settings::GatewaySettings;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
pub use tokio_rustls::TlsAcceptor as Tls;

/// The acceptor for the files that the settings name; `None` if they name none.
pub fn tls(settings: &GatewaySettings) -> Result<Option<Tls>, String> {
    let (cert, key) = (&settings.tls_cert, &settings.tls_key);
    if cert.is_empty() && key.is_empty() {
        return Ok(None);
    }
    let unread =
        |setting: &str, file: &str, error: &dyn std::fmt::Display| format!("{setting}: cannot read {file}: {error}");
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| unread("gateway.tls_cert", cert, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unread("gateway.tls_key", key, &error))?;
    let unfit = |error: rustls::Error| format!("gateway.tls_cert and gateway.tls_key do not fit: {error}");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(unfit)?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, private).map_err(unfit)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Tls::from(Arc::new(config))))
}
