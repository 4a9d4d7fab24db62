//! An HTTPS service under its own CA that answers as a test says: the SDK's calls for real.

use std::convert::Infallible;
use std::sync::Arc;

use aws_credential_types::Credentials;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::AwsSettings;

/// A request as it arrived.
pub(crate) struct Call {
    pub(crate) authorization: String,
    pub(crate) target: String,
    pub(crate) body: String,
}

/// A running service; ends with its value.
pub(crate) struct FakeAws {
    pub(crate) settings: AwsSettings,
    _folder: tempfile::TempDir,
    _server: JoinSet<()>,
}

impl FakeAws {
    /// `answer` gives status and body.
    pub(crate) async fn start(
        answer: impl Fn(Call) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();

        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("ca.pem");
        std::fs::write(&bundle, ca_certificate.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = AwsSettings {
            endpoint_url: Some(format!("https://{}", listener.local_addr().unwrap())),
            ca_bundle: Some(bundle),
            credentials: Some(Credentials::new(
                "AKIDEXAMPLE",
                "secret",
                None,
                None,
                "test",
            )),
        };
        let mut server = JoinSet::new();
        server.spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            Arc::new(answer),
        ));
        Self {
            settings,
            _folder: folder,
            _server: server,
        }
    }
}

type Answer = Arc<dyn Fn(Call) -> (u16, String) + Send + Sync>;

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, answer: Answer) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
        connections.spawn(async move {
            // A client that does not trust the certificate goes away here.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = hyper::service::service_fn(|request| reply(request, Arc::clone(&answer)));
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn reply(
    request: Request<Incoming>,
    answer: Answer,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| {
        let value = request.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let (authorization, target) = (header("authorization"), header("x-amz-target"));
    let body = Limited::new(request.into_body(), 1 << 20).collect().await;
    let body = String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap();
    let (status, body) = answer(Call {
        authorization,
        target,
        body,
    });
    Ok(Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(body)))
        .unwrap())
}
