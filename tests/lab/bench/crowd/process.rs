//! The crowd's own process: reads orders, does them, answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::Rng as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::member::Member;
use super::orders::{Answer, Kind, Order, Setup};
use super::session::Session;
use crate::bench::machine;
use crate::console;

/// Logins at one time: AWS is not what is measured.
const LOGINS: usize = 16;
/// Farewells at one time: each is a further connection, and one address may have so many.
const FAREWELLS: usize = 32;

/// Serves until its orders end.
pub async fn serve() -> Result<()> {
    machine::raise_descriptors()?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await?.context("nobody said who we are")?;
    let mut setup: Setup = serde_json::from_str(&first)?;
    let members = std::mem::take(&mut setup.people)
        .into_iter()
        .map(|person| Ok(Arc::new(Mutex::new(Member::new(person.environment)?))))
        .collect::<Result<_>>()?;
    let mut crowd = Crowd {
        setup: Arc::new(setup),
        members,
        next: 0,
        tunnels: VecDeque::new(),
        shells: VecDeque::new(),
    };
    while let Some(line) = lines.next_line().await? {
        let answer = crowd.obey(serde_json::from_str(&line)?).await?;
        console::answer(&serde_json::to_string(&answer)?);
    }
    for kind in [Kind::Tunnel, Kind::Shell] {
        crowd.close(kind, usize::MAX).await;
    }
    for member in &crowd.members {
        member.lock().await.log_out().await;
    }
    Ok(())
}

struct Crowd {
    setup: Arc<Setup>,
    members: Vec<Arc<Mutex<Member>>>,
    // Whose turn it is to open a session.
    next: usize,
    tunnels: VecDeque<Session>,
    shells: VecDeque<Session>,
}

impl Crowd {
    async fn obey(&mut self, order: Order) -> Result<Answer> {
        let mut tally = match order {
            Order::LogIn => self.log_in().await,
            Order::Storm => self.storm().await,
            Order::Open {
                kind,
                count,
                at_once,
            } => self.open(kind, count, at_once).await,
            Order::Type {
                kind,
                count,
                every_ms,
                seconds,
            } => {
                let every = Duration::from_millis(every_ms);
                let until = Instant::now() + Duration::from_secs(seconds);
                self.type_on(kind, count, every, until).await
            }
            Order::Close { kind, count } => self.close(kind, count).await,
        };
        tally.open = self.tunnels.len() + self.shells.len();
        Ok(tally)
    }

    async fn log_in(&self) -> Answer {
        let places = Arc::new(Semaphore::new(LOGINS));
        let mut running = JoinSet::new();
        for member in &self.members {
            let (member, places) = (Arc::clone(member), Arc::clone(&places));
            let setup = Arc::clone(&self.setup);
            running.spawn(async move {
                let _place = places.acquire().await;
                let started = Instant::now();
                let member = member.lock().await;
                member.log_in(&setup.totp_secret).await?;
                anyhow::Ok(started.elapsed())
            });
        }
        let mut answer = Answer::default();
        while let Some(done) = running.join_next().await {
            if let Some(took) = answer.note(done) {
                answer.add("login", took);
            }
        }
        answer
    }

    async fn storm(&mut self) -> Answer {
        let started = Instant::now();
        let mut running = JoinSet::new();
        for member in &self.members {
            let (member, setup) = (Arc::clone(member), Arc::clone(&self.setup));
            running.spawn(async move {
                let gateway = member.lock().await.gateway().await?;
                let enrolled = started.elapsed();
                let session = Session::open(&gateway, Kind::Tunnel, &setup).await?;
                anyhow::Ok((enrolled, started.elapsed(), session))
            });
        }
        let mut answer = Answer::default();
        while let Some(done) = running.join_next().await {
            if let Some((enrolled, first, session)) = answer.note(done) {
                answer.add("enrolled", enrolled);
                answer.add("first byte", first);
                self.tunnels.push_back(session);
            }
        }
        answer
    }

    async fn open(&mut self, kind: Kind, count: usize, at_once: usize) -> Answer {
        let mut answer = Answer::default();
        let mut running = JoinSet::new();
        let mut left = count;
        loop {
            while left > 0 && running.len() < at_once.max(1) {
                left -= 1;
                let Some(member) = self.members.get(self.next % self.members.len().max(1)) else {
                    break;
                };
                self.next += 1;
                let (member, setup) = (Arc::clone(member), Arc::clone(&self.setup));
                running.spawn(async move {
                    let gateway = member.lock().await.gateway().await?;
                    let started = Instant::now();
                    let session = Session::open(&gateway, kind, &setup).await?;
                    anyhow::Ok((started.elapsed(), session))
                });
            }
            let Some(done) = running.join_next().await else {
                return answer;
            };
            if let Some((first, session)) = answer.note(done) {
                answer.add("first byte", first);
                self.held(kind).push_back(session);
            }
        }
    }

    async fn type_on(
        &mut self,
        kind: Kind,
        count: usize,
        every: Duration,
        until: Instant,
    ) -> Answer {
        let held = self.held(kind);
        let count = count.min(held.len());
        let mut running = JoinSet::new();
        for mut session in held.drain(..count) {
            running.spawn(async move {
                // People do not type in step.
                let phase = every.mul_f64(rand::rng().random::<f64>());
                let mut next = Instant::now() + phase;
                let mut times = Vec::new();
                while next < until {
                    tokio::time::sleep_until(next.into()).await;
                    times.push(session.echo().await?);
                    next = (next + every).max(Instant::now());
                }
                anyhow::Ok((session, times))
            });
        }
        let mut answer = Answer::default();
        while let Some(done) = running.join_next().await {
            if let Some((session, times)) = answer.note(done) {
                for took in times {
                    answer.add("echo", took);
                }
                self.held(kind).push_back(session);
            }
        }
        answer
    }

    async fn close(&mut self, kind: Kind, count: usize) -> Answer {
        let held = self.held(kind);
        let count = count.min(held.len());
        let places = Arc::new(Semaphore::new(FAREWELLS));
        let mut running = JoinSet::new();
        for session in held.drain(..count) {
            let places = Arc::clone(&places);
            running.spawn(async move {
                let _place = places.acquire().await;
                let started = Instant::now();
                session.close().await?;
                anyhow::Ok(started.elapsed())
            });
        }
        let mut answer = Answer::default();
        while let Some(done) = running.join_next().await {
            if let Some(took) = answer.note(done) {
                answer.add("close", took);
            }
        }
        answer
    }

    fn held(&mut self, kind: Kind) -> &mut VecDeque<Session> {
        match kind {
            Kind::Tunnel => &mut self.tunnels,
            Kind::Shell => &mut self.shells,
        }
    }
}

impl Answer {
    fn add(&mut self, what: &str, took: Duration) {
        let times = self.times.entry(what.to_owned()).or_default();
        times.push(took.as_secs_f64() * 1e3);
    }

    /// What came of it, unless it failed.
    fn note<T>(&mut self, done: Result<Result<T>, tokio::task::JoinError>) -> Option<T> {
        let error = match done.map_err(anyhow::Error::from) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) | Err(error) => error,
        };
        *self.failures.entry(format!("{error:#}")).or_default() += 1;
        None
    }
}
