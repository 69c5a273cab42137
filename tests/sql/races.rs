//! Races operations of several processes against each other, through one database.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::{
    Clock, ManageError, MemoryDirectory, NewToken, Reason, SystemClock, TokenId, TokenService,
    TokenState, TokenStore,
};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support_sql::{
    Folder, MariaDbStore, PostgresStore, ada, mariadb_pool, mariadb_schema, postgres_pool, schema,
    service, sqlite_store, unique,
};

const TARGET: &str = "PATKIT_RACE_TARGET";
const PROCESSES: usize = 4;
const ROUNDS: usize = 150;
/// The time between rounds, which is long enough for all processes to finish one.
const ROUND_MICROS: i64 = 25_000;

type Service<S> = TokenService<S, MemoryDirectory>;

fn now() -> i64 {
    SystemClock::new().now_micros()
}

/// Races the processes for two tokens and a name, in rounds at the same instants of the clock.
///
/// Half of the processes restore the first token and half revoke it as compromised. All of them
/// rotate the second token and want the same name.
async fn race<S: TokenStore>(
    service: &Service<S>,
    number: usize,
    start: i64,
    tokens: &[[TokenId; 2]],
) {
    let mut lines = Vec::new();
    for (round, [torn, rotated]) in tokens.iter().enumerate() {
        let due = start + i64::try_from(round).unwrap() * ROUND_MICROS;
        // Delays another process a little in each round.
        let late = i64::try_from((number * 7 + round * 13) % 10).unwrap() * 50;
        while now() < due + late {
            std::hint::spin_loop();
        }
        let torn = if number.is_multiple_of(2) {
            service.restore(&ada(), *torn).await.map(drop)
        } else {
            service.revoke(&ada(), *torn, Reason::Compromised).await.map(drop)
        };
        let rotated = service.rotate(&ada(), *rotated, Duration::ZERO).await.map(drop);
        let named =
            service.generate(&ada(), NewToken::named(&format!("wanted {round}"))).await.map(drop);
        for (what, result) in [("torn", torn), ("rotated", rotated), ("named", named)] {
            let said = match result {
                Ok(()) => "done",
                Err(ManageError::NameTaken) => "taken",
                Err(ManageError::Refused(_)) => "refused",
                Err(other) => panic!("{what} in round {round}: {other:?}"),
            };
            writeln!(lines, "@{round} {what} {said}").unwrap();
        }
    }
    std::io::stdout().lock().write_all(&lines).unwrap();
}

#[tokio::test]
#[ignore = "in processes of its own, by the tests below"]
async fn racer() {
    let target = std::env::var(TARGET).unwrap();
    let [engine, place, number, start, ids] = &*target.split('|').collect::<Vec<_>>() else {
        panic!("{target}")
    };
    let ids: Vec<TokenId> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    let (tokens, _) = ids.as_chunks();
    let (number, start) = (number.parse().unwrap(), start.parse().unwrap());
    match *engine {
        "sqlite" => {
            race(&service(sqlite_store(Path::new(place)).await), number, start, tokens).await;
        }
        "mariadb" => {
            let builder = MariaDbStore::builder(mariadb_pool(2).await);
            race(&service(builder.schema(place).open().await.unwrap()), number, start, tokens)
                .await;
        }
        _ => {
            let builder = PostgresStore::builder(postgres_pool(2).await);
            race(&service(builder.schema(place).open().await.unwrap()), number, start, tokens)
                .await;
        }
    }
}

async fn from_several_processes<S: TokenStore>(service: Service<S>, target: &str) {
    let mut tokens = Vec::new();
    for round in 0..ROUNDS {
        let torn =
            service.generate(&ada(), NewToken::named(&format!("torn {round}"))).await.unwrap();
        service.revoke(&ada(), torn.token.id(), Reason::Owner).await.unwrap();
        let rotated =
            service.generate(&ada(), NewToken::named(&format!("rotated {round}"))).await.unwrap();
        tokens.push([torn.token.id(), rotated.token.id()]);
    }
    let ids: Vec<String> = tokens.as_flattened().iter().map(ToString::to_string).collect();
    let start = now() + 2_000_000;
    let racer = |number| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", "races::racer"])
            .env(TARGET, format!("{target}|{number}|{start}|{}", ids.join(" ")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let racers: Vec<Child> = (0..PROCESSES).map(racer).collect();
    let mut said = vec![Vec::new(); ROUNDS];
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let Some((_, line)) = line.split_once('@') else { continue };
            let (round, what) = line.split_once(' ').unwrap();
            said[round.parse::<usize>().unwrap()].push(what.to_owned());
        }
    }
    let mut orders = std::collections::BTreeSet::new();
    for (round, [torn, rotated]) in tokens.iter().enumerate() {
        let count = |what: &str| said[round].iter().filter(|said| *said == what).count();
        assert_eq!(said[round].len(), 3 * PROCESSES);
        let torn = service.store().find(*torn).await.unwrap().unwrap();
        assert_eq!(torn.state(SystemClock::new().now()), TokenState::Revoked, "round {round}");
        assert_eq!(torn.facts.revocation.as_ref().unwrap().reason, Reason::Compromised);
        orders.insert(count("torn done"));
        assert_eq!(
            (count("rotated done"), count("rotated refused")),
            (1, PROCESSES - 1),
            "round {round}"
        );
        let rotated = service.store().find(*rotated).await.unwrap().unwrap();
        let successor = rotated.facts.succession.unwrap().successor;
        let successor = service.store().find(successor).await.unwrap().unwrap();
        assert_eq!(successor.predecessor, Some(rotated.id));
        assert_eq!(
            (count("named done"), count("named taken")),
            (1, PROCESSES - 1),
            "round {round}"
        );
    }
    // More than one number shows that the processes raced. On a busy machine they may run one by
    // one, always in the same order.
    println!(
        "of {PROCESSES} changes of one token, in {ROUNDS} rounds, so many were done: {orders:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn races_through_postgres_have_one_winner() {
    let pool = postgres_pool(2).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    from_several_processes(service(store), &format!("postgres|{schema}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn races_through_mariadb_have_one_winner() {
    let pool = mariadb_pool(2).await;
    let schema = mariadb_schema(&pool).await;
    let store = MariaDbStore::builder(pool).schema(&schema).migrate().await.unwrap();
    from_several_processes(service(store), &format!("mariadb|{schema}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn races_through_sqlite_have_one_winner() {
    let folder = Folder::new();
    let file = folder.path().join(unique("db"));
    let store = sqlite_store(&file).await;
    from_several_processes(service(store), &format!("sqlite|{}", file.display())).await;
}
