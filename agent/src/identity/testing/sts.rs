//! An STS that says whatever a test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{ALICE, now};
use crate::ca::x509::{Authority, Purpose};

/// A request as the STS of a test saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn form(&self, name: &str) -> Option<&str> {
        self.body
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What it answers.
pub(crate) enum Reply {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// A chunked 200 that never ends.
    Flood,
    /// Nothing, ever.
    Never,
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// An STS on loopback, over TLS with a CA of its own.
pub(crate) struct FakeSts {
    pub(crate) address: SocketAddr,
    /// The `[sts]` lines that lead to it.
    pub(crate) settings: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl FakeSts {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ca = Authority::root(Purpose::Server, "aws", now()).unwrap();
        let bundle: PathBuf = folder.path().join("aws.pem");
        std::fs::write(&bundle, ca.certificate_pem()).unwrap();
        let name = "localhost".parse().unwrap();
        let (chain, key) = ca.server_certificate(&name, now()).unwrap();
        let config = ServerConfig::builder_with_provider(crate::crypto::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![chain],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tasks.spawn(serve(listener, acceptor, Arc::new(script), seen.clone()));
        Self {
            address,
            settings: format!(
                "endpoint_url = \"https://localhost:{}\"\nca_bundle = \"{}\"",
                address.port(),
                bundle.display()
            ),
            seen,
            _folder: folder,
            _tasks: tasks,
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, script, seen) = (acceptor.clone(), script.clone(), seen.clone());
        connections.spawn(async move {
            let _ = answer(stream, &acceptor, &script, &seen).await;
        });
    }
}

async fn answer(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    script: &Script,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let request = read_request(&mut stream).await?;
    let reply = script(&request);
    seen.lock().unwrap().push(request);
    match reply {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
        Reply::Flood => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ntransfer-encoding: chunked\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b"400\r\n").await?;
                stream.write_all(&[b'<'; 1024]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
        Reply::Never => std::future::pending().await,
    }
    stream.shutdown().await
}

async fn read_request<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Seen> {
    let mut bytes = vec![];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |v| v.parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let body = String::from_utf8(bytes[end + 4..].to_vec()).unwrap();
    Ok(Seen {
        path,
        headers,
        body,
    })
}

/// An HTTP answer in one piece.
pub(crate) fn http(status: &str, content_type: &str, body: &str) -> Reply {
    Reply::Bytes(
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

/// An answer of GetCallerIdentity.
pub(crate) fn identity_xml(arn: &str, user_id: &str, account: &str) -> String {
    format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <GetCallerIdentityResult><Arn>{arn}</Arn><UserId>{user_id}</UserId>\
         <Account>{account}</Account></GetCallerIdentityResult>\
         <ResponseMetadata><RequestId>request-1</RequestId></ResponseMetadata>\
         </GetCallerIdentityResponse>"
    )
}

/// An answer of AssumeRole, credentials included.
pub(crate) fn assumed_xml(arn: &str) -> String {
    format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROA:x</AssumedRoleId>\
         <Arn>{arn}</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIACANARY</AccessKeyId>\
         <SecretAccessKey>canary</SecretAccessKey><SessionToken>canary</SessionToken>\
         <Expiration>2026-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult>\
         <ResponseMetadata><RequestId>request-2</RequestId></ResponseMetadata>\
         </AssumeRoleResponse>"
    )
}

/// A refusal in STS's form.
pub(crate) fn error(code: &str) -> Reply {
    http(
        "403 Forbidden",
        "text/xml",
        &format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
             <Type>Sender</Type><Code>{code}</Code><Message>because</Message></Error>\
             <RequestId>r</RequestId></ErrorResponse>"
        ),
    )
}

/// Stands for SigV4: a hash over everything that the real one covers. What the signature covers
/// is tested against AWS's own algorithm in the lab.
pub(crate) fn sign(secret: &str, bind: &str, date: &str, body: &str) -> String {
    let text = format!("{secret}\n{bind}\n{date}\n{body}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

/// An STS that knows alice's session, with MFA unless told otherwise.
pub(crate) fn genuine(mfa: bool) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| {
        let signed = sign(
            "secret",
            seen.header("postern-bind"),
            seen.header("x-amz-date"),
            &seen.body,
        );
        if !seen.header("authorization").ends_with(&signed) {
            return error("SignatureDoesNotMatch");
        }
        match seen.form("Action") {
            Some("GetCallerIdentity") => http(
                "200 OK",
                "text/xml",
                &identity_xml(
                    "arn:aws:iam::111122223333:user/alice",
                    ALICE,
                    "111122223333",
                ),
            ),
            Some("AssumeRole") if mfa => {
                let session = seen.form("RoleSessionName").unwrap();
                let arn =
                    format!("arn:aws:sts::111122223333:assumed-role/postern-attest/{session}");
                http("200 OK", "text/xml", &assumed_xml(&arn))
            }
            _ => error("AccessDenied"),
        }
    }
}
