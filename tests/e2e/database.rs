//! `db-1`: a genuine PostgreSQL behind `postern forward`.

use lab::forward::Forward;
use lab::stack::{DATABASE_PORT, Lab, Options};

use crate::harness::{Told, events, lab_with, postern_as, run};

async fn psql(lab: &Lab, host: &str, port: u16, sql: &str) -> Told {
    let mut psql = lab.command("psql");
    psql.args(["-X", "-A", "-t", "-U", "postgres", "-h", host]);
    run(psql.args(["-p", &port.to_string(), "-c", sql]), b"").await
}

#[tokio::test]
async fn psql_works_through_a_forwarded_port_with_several_connections() {
    let lab = lab_with(Options::default()).await;
    let port = format!("0:{DATABASE_PORT}");
    let forward = Forward::start(lab.postern("alice"), "db-1", &port)
        .await
        .unwrap();
    let (host, local) = ("127.0.0.1", forward.local.port());
    // Enough rows for many windows.
    let rows = "select repeat('x', 1000) from generate_series(1, 5000)";
    let (sum, rows) = tokio::join!(
        psql(
            &lab,
            host,
            local,
            "select sum(n) from generate_series(1, 100000) n"
        ),
        psql(&lab, host, local, rows),
    );
    assert_eq!(sum.status(0).out(), "5000050000\n");
    assert_eq!(rows.status(0).stdout.len(), 5000 * 1001);
    forward.interrupt().await.unwrap();
    let log = events(&lab).await;
    assert!(log.contains("session granted: tunnel"), "{log}");
    // Without the bastion there is no way.
    let host = lab.network.db().to_string();
    let direct = psql(&lab, &host, DATABASE_PORT, "select 1").await;
    assert_ne!(direct.status, Some(0), "{}", direct.out());
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_developer_gets_no_tunnel_to_production() {
    let lab = lab_with(Options::default()).await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    let port = format!("0:{DATABASE_PORT}");
    let told = postern_as(&lab, "bob", &["forward", "db-1", &port]).await;
    let told = told.status(1);
    assert_eq!(told.out(), "");
    told.says(&["developers-tunnel-staging", "staging"]);
    lab.stop().await.unwrap();
}
