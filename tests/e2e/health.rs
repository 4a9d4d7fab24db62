//! What operators watch: `/healthz`, `/readyz`, `/metrics`.

use crate::harness::{get, lab, postern};

/// The value of a metric without labels.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics
        .lines()
        .find(|line| line.split(' ').next() == Some(name))
        .unwrap_or_else(|| panic!("no {name} in:\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_healthy_agent_says_so_and_counts_its_work() {
    let lab = lab().await;
    assert_eq!(get(&lab, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&lab, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(get(&lab, "/").await.0, 404);
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(0);
    postern(&lab, &["connect", "web-1", "-l", "nobody", "--", "true"])
        .await
        .status(255);
    let (status, metrics) = get(&lab, "/metrics").await;
    assert_eq!(status, 200);
    assert_eq!(value(&metrics, "postern_ready"), 1.0);
    for gauge in [
        "postern_connections",
        "postern_connections_unauthenticated",
        "postern_sessions",
    ] {
        assert_eq!(value(&metrics, gauge), 0.0, "{gauge}");
    }
    assert!(
        metrics.contains("postern_denied_total{code=\"policy\"} 1"),
        "{metrics}"
    );
    // Nobody is named where nobody is asked who they are.
    for secret in ["alice", "AIDA", "web-1", "i-0a1b2c3d4e5f60001"] {
        assert!(!metrics.contains(secret), "{secret} in:\n{metrics}");
    }
    lab.stop().await.unwrap();
}
