//! STS asked and signed by hand: Signature Version 4 as AWS documents it, so that our own signer
//! does not agree with itself alone.

use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use lab::account::REGION;
use lab::stack::Lab;
use postern_proto::enroll::StsRequest;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::PATIENCE;

/// Credentials as AWS hands them out.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

impl Keys {
    /// A person's long-term keys.
    pub(crate) fn of(lab: &Lab, user: &str) -> Self {
        let key = lab.aws.user(user).unwrap().access_key;
        Self {
            id: key.id,
            secret: key.secret,
            token: None,
        }
    }

    /// A session made from these keys: with a code, without one, or of a role.
    pub(crate) async fn session(&self, lab: &Lab, parameters: &str) -> Self {
        let answer = ask(lab, self, parameters).await;
        let text = |name: &str| {
            let (_, rest) = answer.split_once(&format!("<{name}>")).expect(&answer);
            rest.split_once('<').expect(&answer).0.to_owned()
        };
        Self {
            id: text("AccessKeyId"),
            secret: text("SecretAccessKey"),
            token: Some(text("SessionToken")),
        }
    }

    /// The session of a person who gave a code.
    pub(crate) async fn with_mfa(lab: &Lab, user: &str) -> Self {
        let code = lab.aws.unused_code(user).unwrap();
        let serial = lab
            .aws
            .mfa_serial(user)
            .replace(':', "%3A")
            .replace('/', "%2F");
        let parameters = format!("Action=GetSessionToken&SerialNumber={serial}&TokenCode={code}");
        Self::of(lab, user).session(lab, &parameters).await
    }

    /// The signature (hex) of a request at a date.
    pub(crate) fn sign(&self, request: &StsRequest, date: &str) -> String {
        let mut headers = request.headers.clone();
        headers.push(("x-amz-date".to_owned(), date.to_owned()));
        if let Some(token) = &self.token {
            headers.push(("x-amz-security-token".to_owned(), token.clone()));
        }
        headers.sort();
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let names = StsRequest::signed_headers(self.token.is_some());
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", sha256(&request.body));
        let scope = format!("{}/{REGION}/sts/aws4_request", &date[..8]);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(&canonical));
        let first = format!("AWS4{}", self.secret).into_bytes();
        let key = [&date[..8], REGION, "sts", "aws4_request"]
            .iter()
            .fold(first, |key, part| mac(&key, part));
        hex::encode(mac(&key, &text))
    }
}

/// Asks STS and demands a yes.
async fn ask(lab: &Lab, keys: &Keys, parameters: &str) -> String {
    let host = lab.aws.address().to_string();
    let mut request = StsRequest::identity(&host, "by-hand");
    request.body = format!("{parameters}&Version=2011-06-15");
    let date = date(0);
    let signature = keys.sign(&request, &date);
    let authorization =
        StsRequest::authorization(&keys.id, &date, REGION, keys.token.is_some(), &signature);
    let headers: String = request
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let token = keys.token.as_ref();
    let token = token.map_or_else(String::new, |token| {
        format!("x-amz-security-token: {token}\r\n")
    });
    let message = format!(
        "POST / HTTP/1.1\r\n{headers}x-amz-date: {date}\r\n{token}\
         authorization: {authorization}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}",
        request.body.len(),
        request.body
    );
    let exchange = exchange(lab, message.as_bytes());
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("an answer in time")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

async fn exchange(lab: &Lab, message: &[u8]) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    let bundle = &lab.environment["AWS_CA_BUNDLE"];
    for certificate in CertificateDer::pem_file_iter(bundle).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = lab.aws.address();
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?;
    stream.write_all(message).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `YYYYMMDDTHHMMSSZ`, so many seconds from now.
pub(crate) fn date(offset: i64) -> String {
    let at = OffsetDateTime::now_utc() + time::Duration::seconds(offset);
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    at.format(format).unwrap()
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn sha256(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}
