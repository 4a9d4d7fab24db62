use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::*;

fn limits() -> Limits {
    Limits::new(Ceilings {
        connections: 4,
        unauthenticated: 3,
        unauthenticated_per_address: 2,
        enrollments: 2,
        enrollments_per_address: 2,
        pipes_per_principal: 2,
        sessions_per_principal: 1,
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn strangers_are_limited_by_address_and_in_all() {
    let limits = limits();
    let _a = limits.arrive(ip("192.0.2.1")).unwrap();
    let b = limits.arrive(ip("::ffff:192.0.2.1")).unwrap();
    assert_eq!(
        limits.arrive(ip("192.0.2.1")).unwrap_err(),
        LimitReached::Unauthenticated
    );
    let c = limits.arrive(ip("2001:db8::1")).unwrap();
    drop(b);
    limits.arrive(ip("192.0.2.1")).unwrap();
    assert!(!c.leave().is_cancelled());
}

#[test]
fn a_flood_of_strangers_crowds_out_itself_and_nobody_else() {
    let limits = limits();
    let a = limits.arrive(ip("192.0.2.1")).unwrap();
    let b = limits.arrive(ip("192.0.2.1")).unwrap();
    let c = limits.arrive(ip("192.0.2.2")).unwrap();
    let d = limits.arrive(ip("192.0.2.3")).unwrap();
    let gone = [&a, &b, &c, &d].map(|one| one.leave().is_cancelled());
    assert_eq!(gone, [true, false, false, false], "the oldest of the crowd");
    // Until it is gone it has its place: those on their way out are bounded too.
    assert!(limits.arrive(ip("192.0.2.4")).is_err());
    assert_eq!(limits.connections(), (4, 4));
    drop(a);
    assert_eq!(limits.connections(), (3, 3));
    // Nobody has more than a fourth address would have.
    assert!(limits.arrive(ip("192.0.2.2")).is_err());
    drop((b, c, d));
    assert_eq!(limits.connections(), (0, 0));
    limits.arrive(ip("192.0.2.1")).unwrap();
}

#[test]
fn an_ipv6_host_cannot_multiply_by_its_prefix() {
    let limits = limits();
    let _a = limits.arrive(ip("2001:db8::1")).unwrap();
    let _b = limits.arrive(ip("2001:db8::2")).unwrap();
    assert!(limits.arrive(ip("2001:db8::3")).is_err());
}

#[test]
fn who_proved_an_identity_no_longer_counts_as_a_stranger() {
    let limits = limits();
    let _a = limits.arrive(ip("192.0.2.1")).unwrap().prove("x").unwrap();
    let b = limits.arrive(ip("192.0.2.1")).unwrap().prove("x").unwrap();
    let c = limits.arrive(ip("192.0.2.1")).unwrap();
    assert_eq!(c.prove("x").unwrap_err(), LimitReached::Pipes(2));
    assert_eq!(limits.connections(), (2, 0), "a refused one is gone");
    drop(b);
    limits.arrive(ip("192.0.2.1")).unwrap().prove("x").unwrap();
}

#[test]
fn sessions_have_a_limit_of_their_own() {
    let limits = limits();
    let session = limits.session("x").unwrap();
    assert_eq!(limits.session("x").unwrap_err(), LimitReached::Sessions(1));
    limits.session("y").unwrap();
    drop(session);
    limits.session("x").unwrap();
}

#[tokio::test]
async fn an_enrolment_waits_for_its_turn_as_long_as_it_may() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let limits = limits();
    let [here, there, elsewhere] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(ip);
    let one = limits.arrive(here).unwrap().enroll(here, PATIENCE).await;
    let two = limits.arrive(there).unwrap().enroll(there, PATIENCE).await;
    let three = limits.arrive(elsewhere).unwrap();
    let refused = three.enroll(elsewhere, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused, LimitReached::Enrollments);
    assert_eq!(limits.connections(), (2, 0), "who gave up counts no more");

    let three = limits.arrive(elsewhere).unwrap();
    let mut waiting = pin!(three.enroll(elsewhere, PATIENCE));
    let waits = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
    assert!(waits.await);
    assert_eq!(
        limits.connections(),
        (3, 1),
        "who waits is a stranger still"
    );
    assert!(!one.as_ref().unwrap().leave().is_cancelled());
    drop(one);
    drop((waiting.await.unwrap(), two));
    assert_eq!(limits.connections(), (0, 0));
}

#[tokio::test]
async fn an_address_with_most_enrolments_gives_one_up_for_somebody_from_elsewhere() {
    let limits = limits();
    let (crowd, elsewhere) = (ip("192.0.2.1"), ip("192.0.2.2"));
    let enroll = async |address| {
        let arrival = limits.arrive(address).unwrap();
        arrival.enroll(address, Duration::ZERO).await
    };
    let (one, two) = (enroll(crowd).await.unwrap(), enroll(crowd).await.unwrap());
    assert!(enroll(crowd).await.is_err());
    assert!(!one.leave().is_cancelled());
    let other = enroll(elsewhere).await.unwrap();
    let gone = [&one, &two, &other].map(|one| one.leave().is_cancelled());
    assert_eq!(gone, [true, false, false], "the oldest of the crowd");
    assert!(enroll(crowd).await.is_err());
    drop((one, two, other));
    enroll(crowd).await.unwrap();
}

#[tokio::test]
async fn a_few_who_share_an_address_give_up_nothing_when_the_places_are_full() {
    let limits = Limits::new(Ceilings {
        connections: 8,
        unauthenticated: 8,
        unauthenticated_per_address: 8,
        enrollments: 4,
        enrollments_per_address: 4,
        ..*limits().ceilings
    });
    let enroll = async |address: &str| {
        let address = ip(address);
        let arrival = limits.arrive(address).unwrap();
        arrival.enroll(address, Duration::ZERO).await
    };
    let mut all = Vec::new();
    for office in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        all.push(enroll(office).await.unwrap());
    }
    let refused = enroll("192.0.2.4").await.unwrap_err();
    assert_eq!(refused, LimitReached::Enrollments);
    assert!(all.iter().all(|one| !one.leave().is_cancelled()));
    // One more of them would be a crowd.
    all.remove(2);
    all.push(enroll("192.0.2.1").await.unwrap());
    enroll("192.0.2.4").await.unwrap();
    let gone: Vec<_> = all.iter().map(|one| one.leave().is_cancelled()).collect();
    assert_eq!(gone, [true, false, false, false], "the oldest of the crowd");
}

#[test]
fn a_parked_pipe_leaves_its_place_to_the_connection_that_comes_back_for_it() {
    let limits = limits();
    let prove = || limits.arrive(ip("192.0.2.1")).unwrap().prove("x");
    let (a, _b) = (prove().unwrap(), prove().unwrap());
    let parked = a.park().unwrap();
    let again = prove().unwrap();
    let _second = again.park().unwrap();
    let third = prove().unwrap();
    assert_eq!(third.park().unwrap_err(), LimitReached::Parked(2));
    drop(parked);
    prove().unwrap().park().unwrap();
}

#[test]
fn resumes_are_limited_since_each_is_an_event() {
    let limits = limits();
    let now = Instant::now();
    let taken = (0..1000).filter(|_| limits.may_resume("x", now).is_ok());
    assert_eq!(taken.count(), 512);
    limits.may_resume("y", now).unwrap();
    limits
        .may_resume("x", now + Duration::from_secs(1))
        .unwrap();
}

#[test]
fn denials_fill_the_log_no_faster_than_one_in_two_seconds() {
    let limits = limits();
    let mut now = Instant::now();
    let logged = |now| (0..100).filter(|_| limits.may_log_denial("x", now)).count();
    assert_eq!(logged(now), 30);
    now += Duration::from_secs(10);
    assert_eq!(logged(now), 5);
    limits.sweep(now + Duration::from_secs(121));
    assert!(limits.counts().principals.is_empty(), "nothing is kept");
}
