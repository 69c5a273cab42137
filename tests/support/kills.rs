//! Kills a writer again and again, and checks that no acknowledged change is lost and no change is
//! half stored. The tests of each driver include this file.
//!
//! `PATKIT_CRASH_ROUNDS` sets how often the writer of each driver is killed; it defaults to 200.

use patkit::audit::AuditAction;
use patkit::store::sql::{Connection, Driver};
use patkit::store::{AuditLog, EventQuery};
use patkit::{
    Actor, Credential, Keyring, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind, Realm,
    Reason, SqlStore, TokenId, TokenService, TokenState, TokenStore,
};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The variable with the database that the writer writes to.
const TARGET: &str = "PATKIT_CRASH_TARGET";

pub type Service<S> = TokenService<S, MemoryDirectory>;

/// Returns the actor `ada`, in a session.
pub fn ada() -> Actor {
    Actor::signed_in(OwnerId::new("ada").unwrap())
}

/// Creates a service whose only user is `ada`. All processes share one key.
pub fn service<S: TokenStore>(store: S) -> Service<S> {
    let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
    let keyring = Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    TokenService::builder(store, [ada].into_iter().collect())
        .brand("acme")
        .keyring(keyring)
        .build()
        .unwrap()
}

/// Returns the target that [`lose_nothing`] passed to the writer.
pub fn target() -> String {
    std::env::var(TARGET).unwrap()
}

/// Announces a change, makes it and acknowledges it, in an endless loop.
pub async fn write_for_ever<S: TokenStore>(store: S) {
    let service = service(store);
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        // If the write fails, the reader is gone, and this process ends soon.
        let _ = writeln!(out, "@{line}").and_then(|()| out.flush());
    };
    for number in 0_u64.. {
        let name = format!("token {} {number}", std::process::id());
        let issued = service.generate(&ada(), NewToken::named(&name)).await.unwrap();
        let (id, text) = (issued.token.id(), issued.plaintext);
        say(format!("generated {id} {}", text.expose_secret()));
        for step in 0..4 {
            if step % 2 == 0 {
                say(format!("revoking {id}"));
                service.revoke(&ada(), id, Reason::Owner).await.unwrap();
                say(format!("revoked {id}"));
            } else {
                say(format!("restoring {id}"));
                service.restore(&ada(), id).await.unwrap();
                say(format!("restored {id}"));
            }
        }
        if id.to_bytes()[15] % 2 == 0 {
            say(format!("revoking {id}"));
            service.revoke(&ada(), id, Reason::Owner).await.unwrap();
            say(format!("revoked {id}"));
        }
    }
}

/// The output of the writer about one token.
#[derive(Default, Debug)]
struct Said {
    text: String,
    /// The number of acknowledged changes.
    done: u64,
    is_revoked: bool,
    /// Set while a change is announced but not acknowledged.
    is_open: bool,
}

/// Kills a writer after a delay and returns its output by token.
fn kill_writer(writer: &str, target: &str, after: Duration) -> HashMap<TokenId, Said> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", writer])
        .env(TARGET, target)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (first, begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // A truncated line is not an acknowledgement.
            if let Some((_, line)) = line.split_once('@') {
                let _ = first.send(());
                lines.push(line.to_owned());
            }
        }
        lines
    });
    begun.recv_timeout(Duration::from_secs(60)).expect("the writer wrote nothing");
    std::thread::sleep(after);
    // Sends SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    let mut said: HashMap<TokenId, Said> = HashMap::new();
    for line in reader.join().unwrap() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, id, rest @ ..] = &*words else { panic!("{line}") };
        let of = said.entry(id.parse().unwrap()).or_default();
        match *what {
            "generated" => rest[0].clone_into(&mut of.text),
            "revoking" | "restoring" => of.is_open = true,
            _ => {
                of.is_open = false;
                of.done += 1;
                of.is_revoked = *what == "revoked";
            }
        }
    }
    said
}

/// Checks that acknowledged changes are stored with their events, that none is half stored, and
/// that no revoked token verifies.
async fn check<S: TokenStore + AuditLog>(service: &Service<S>, said: &HashMap<TokenId, Said>) {
    for (id, said) in said {
        let found = service.store().find(*id).await.unwrap().expect("it was acknowledged");
        let (done, state) = whole(service, &found).await;
        assert!(
            done == said.done || (said.is_open && done == said.done + 1),
            "{id}: {done} of {said:?}"
        );
        let is_revoked = if done == said.done { said.is_revoked } else { !said.is_revoked };
        assert_eq!(state == TokenState::Revoked, is_revoked, "{id}: {said:?}");
        let verified = service.verify(Credential::text(&said.text)).await;
        assert_eq!(verified.is_err(), is_revoked, "{id}: {said:?}");
    }
}

/// Checks that each version of a record has exactly one event, and returns the number of changes
/// and the state.
pub async fn whole<S: TokenStore + AuditLog>(
    service: &Service<S>,
    token: &patkit::Token,
) -> (u64, TokenState) {
    let query = EventQuery::new(Realm::default()).token(token.id);
    let events = service.store().events(&query).await.unwrap().events;
    let count = |action| {
        u64::try_from(events.iter().filter(|event| event.action == action).count()).unwrap()
    };
    assert_eq!(count(AuditAction::Generated), 1);
    let changes = count(AuditAction::Revoked) + count(AuditAction::Restored);
    assert_eq!(token.version, 1 + changes, "each change with its event");
    let state = token.state(patkit::Clock::now(&patkit::SystemClock::new()));
    assert_eq!(state == TokenState::Revoked, changes % 2 == 1);
    (changes, state)
}

/// Returns a delay of 0 to 60 ms, which spans the whole lives of several tokens.
pub fn delay(round: u64) -> Duration {
    Duration::from_micros((round * 7_919) % 60_000)
}

/// How the server recognizes the connections of a killed writer. Until they are closed, it may
/// still execute a change that the writer requested.
#[derive(Clone, Copy, Debug)]
pub enum Mark<'a> {
    /// The writer held the database itself.
    None,
    /// Its `application_name` in PostgreSQL.
    ApplicationName(&'a str),
    /// Its default database in MariaDB.
    ///
    /// `information_schema.innodb_trx` would not do: it is refreshed only if nobody has read it for
    /// 0.1 s.
    Database(&'a str),
}

/// Waits until the server has closed the connections of a killed writer.
async fn until_gone<D: Driver>(driver: &D, mark: Mark<'_>) {
    let sql = match mark {
        Mark::None => return,
        Mark::ApplicationName(name) => format!(
            "DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '{name}') \
             LOOP PERFORM pg_stat_clear_snapshot(), pg_sleep(0.001); END LOOP; END $$"
        ),
        Mark::Database(name) => format!(
            "BEGIN NOT ATOMIC WHILE EXISTS (SELECT 1 FROM information_schema.processlist WHERE db = '{name}') \
             DO DO SLEEP(0.001); END WHILE; END"
        ),
    };
    let mut session = driver.acquire().await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(60), session.run(&sql));
    gone.await.expect("the writer's connections are still open").unwrap();
}

/// Kills writers, each of which is the ignored test of this name in a process of its own.
pub fn lose_nothing<D: Driver>(
    runtime: &tokio::runtime::Runtime,
    store: SqlStore<D>,
    (writer, target): (&str, &str),
    mark: Mark<'_>,
) {
    let rounds = std::env::var("PATKIT_CRASH_ROUNDS").map_or(200, |rounds| rounds.parse().unwrap());
    let service = service(store);
    let mut changes = 0;
    for round in 0..rounds {
        let said = kill_writer(writer, target, delay(round));
        changes += said.values().map(|said| said.done + 1).sum::<u64>();
        runtime.block_on(until_gone(service.store().pool(), mark));
        runtime.block_on(check(&service, &said));
    }
    println!("{rounds} writers killed, {changes} changes acknowledged, none lost");
}
