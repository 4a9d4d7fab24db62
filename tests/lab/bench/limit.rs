//! The limit that no tunnel over TLS can pass: how fast the provider seals and opens records of
//! 16 KiB through rustls, on one core, with nothing else to do. Both ends are counted, as in the
//! CPU rows of tunnels: what is sealed is opened again.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, SupportedCipherSuite,
};
use rustls_pki_types::ServerName;

use super::measure::Plan;
use super::report::Part;
use crate::pki::Ca;

const RECORD: usize = 16 * 1024;
const NAME: &str = "127.0.0.1";

/// Every cipher suite of TLS 1.3 that the provider has.
pub async fn run(plan: Plan, part: &mut Part) -> Result<()> {
    part.set("MiB", plan.bytes >> 20);
    for (name, suite) in [
        ("AES-128-GCM", cipher_suite::TLS13_AES_128_GCM_SHA256),
        ("AES-256-GCM", cipher_suite::TLS13_AES_256_GCM_SHA384),
        (
            "ChaCha20-Poly1305",
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ),
    ] {
        // A thread that nothing else runs on.
        let measured = tokio::task::spawn_blocking(move || measure(suite, plan)).await??;
        let gib = plan.bytes as f64 / f64::from(1 << 30);
        let rates = |of: fn(&Ends) -> Duration| {
            measured
                .iter()
                .map(|ends| plan.bytes as f64 / 1e6 / of(ends).as_secs_f64())
                .collect()
        };
        let costs = measured
            .iter()
            .map(|ends| (ends.seal + ends.open).as_secs_f64() / gib)
            .collect();
        part.add(
            "seal and open",
            name,
            0,
            "MB/s",
            rates(|ends| ends.seal + ends.open),
        );
        part.add("seal", name, 0, "MB/s", rates(|ends| ends.seal));
        part.add("open", name, 0, "MB/s", rates(|ends| ends.open));
        part.add("seal and open, CPU", name, 0, "s/GiB", costs);
    }
    Ok(())
}

/// What the two ends took.
#[derive(Default)]
struct Ends {
    seal: Duration,
    open: Duration,
}

fn measure(suite: SupportedCipherSuite, plan: Plan) -> Result<Vec<Ends>> {
    let (mut client, mut server) = connect(suite)?;
    (0..=plan.runs)
        .map(|_| transfer(&mut client, &mut server, plan.bytes))
        .skip(1) // warms the caches
        .collect()
}

fn connect(suite: SupportedCipherSuite) -> Result<(ClientConnection, ServerConnection)> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..aws_lc_rs::default_provider()
    });
    let ca = Ca::new("Postern lab bench CA")?;
    let identity = ca.server(NAME.parse()?)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(
        ca.pem().as_bytes(),
    )?)?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(NAME)?)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        client.write_tls(&mut wire)?;
        feed(&wire, |bytes| {
            server.read_tls(bytes)?;
            Ok(server.process_new_packets().map(drop)?)
        })?;
        wire.clear();
        server.write_tls(&mut wire)?;
        feed(&wire, |bytes| {
            client.read_tls(bytes)?;
            Ok(client.process_new_packets().map(drop)?)
        })?;
    }
    Ok((client, server))
}

fn feed(mut wire: &[u8], mut take: impl FnMut(&mut &[u8]) -> Result<()>) -> Result<()> {
    while !wire.is_empty() {
        take(&mut wire)?;
    }
    Ok(())
}

fn transfer(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
    bytes: u64,
) -> Result<Ends> {
    let record = vec![0x5a; RECORD];
    let mut opened = vec![0; RECORD];
    let mut wire = Vec::with_capacity(2 * RECORD);
    let mut ends = Ends::default();
    for _ in 0..bytes / RECORD as u64 {
        wire.clear();
        let started = Instant::now();
        client.writer().write_all(&record)?;
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        let sealed = Instant::now();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest)?;
            server.process_new_packets()?;
        }
        server
            .reader()
            .read_exact(&mut opened)
            .context("a record is missing")?;
        ends.seal += sealed - started;
        ends.open += sealed.elapsed();
    }
    ensure!(opened == record, "a record is not what was sealed");
    Ok(ends)
}
