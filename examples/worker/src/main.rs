//! The background jobs of a host: `cargo run -p worker`.
//!
//! Tokens are in a SQLite file with a cache in front. Five jobs write last uses, follow the changes
//! of other processes, revoke idle tokens, remove ended ones, and report to the operator. A real
//! host spawns the same five. Here their intervals are short, and the program ends after two
//! seconds, or earlier on Ctrl-C and SIGTERM.

use patkit::store::{AuditLog, TokenCounts};
use patkit::{
    Actor, CachedStore, Clock, Credential, Keyring, MemoryDirectory, NewToken, Owner, OwnerId,
    OwnerKind, SqlStore, SystemClock, TokenPolicy, TokenService,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{interval, sleep};

type Tokens = TokenService<Arc<CachedStore<SqlStore<sqlx::SqlitePool>>>, MemoryDirectory>;

/// The intervals of the jobs, and the retention of tokens and events.
struct Schedule {
    sweep: Duration,
    prune: Duration,
    keep_tokens: Duration,
    keep_events: chrono::TimeDelta,
}

const DAY: Duration = Duration::from_secs(86_400);

/// Revokes the tokens that were idle for longer than the policy allows. Run it once a day on one
/// node.
async fn sweep(tokens: Arc<Tokens>, every: Duration) {
    let mut ticks = interval(every);
    loop {
        ticks.tick().await;
        match tokens.sweep_idle().await {
            Ok(revoked) => println!("sweep: {revoked} idle tokens revoked"),
            // The next run continues where this one stopped.
            Err(error) => println!("sweep: {error}"),
        }
    }
}

/// Removes tokens and events that ended long ago, each by its own retention. Run it once a day on
/// one node.
async fn prune(tokens: Arc<Tokens>, schedule: Schedule) {
    let mut ticks = interval(schedule.prune);
    loop {
        ticks.tick().await;
        match tokens.prune(schedule.keep_tokens).await {
            Ok(removed) => println!("prune: {removed} tokens removed"),
            Err(error) => println!("prune: {error}"),
        }
        let before = SystemClock::new().now() - schedule.keep_events;
        match tokens.store().prune_events(before, 10_000).await {
            Ok(removed) => println!("prune: {removed} audit events removed"),
            Err(error) => println!("prune: {error}"),
        }
    }
}

/// Reports to the host's monitoring: whether the database answers, whether the keys are right, how
/// many tokens each key has, and whether a backlog grows.
async fn watch(tokens: Arc<Tokens>, every: Duration) {
    let mut ticks = interval(every);
    loop {
        ticks.tick().await;
        let cache = tokens.store();
        if let Err(error) = cache.store().health().await {
            println!("health: {error}");
            continue;
        }
        let states = cache.count_by_state(SystemClock::new().now()).await.unwrap_or_default();
        let states: Vec<String> =
            states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let keys = match tokens.check().await {
            Ok(report) => report.to_string(),
            Err(error) => error.to_string(),
        };
        let (usage, read) = (tokens.usage(), cache.stats());
        println!(
            "health: {}; {}; {} uses wait to be written, {} dropped; {} reads of the database, changes of others are {}",
            states.join(", "),
            keys,
            usage.pending,
            usage.dropped,
            read.reads,
            match (read.is_following, read.is_polling_instead) {
                (true, _) => "heard",
                (false, true) => "polled, since notifications do not arrive",
                (false, false) => "seen within 30 s",
            }
        );
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::temp_dir().join(format!("patkit-worker-{}.db", std::process::id()));
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().connect_with(options).await?;
    let store = SqlStore::builder(pool).migrate().await?;
    let cache = Arc::new(CachedStore::builder(store).build()?);
    let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).with_role("member");
    let tokens =
        TokenService::builder(cache.clone(), [ada].into_iter().collect::<MemoryDirectory>())
            .brand("acme")
            .keyring(Keyring::ephemeral()?)
            .policy(TokenPolicy::builder().idle_limit_days(90).build()?)
            .flush_interval(Duration::from_millis(500))
            .build()?;
    let tokens = Arc::new(tokens);
    tokens.check().await?;

    let schedule = Schedule {
        sweep: Duration::from_secs(1),
        prune: Duration::from_secs(1),
        keep_tokens: DAY * 90,
        keep_events: chrono::TimeDelta::days(365),
    };
    let flusher = tokens.clone();
    let jobs = [
        tokio::spawn(async move { flusher.run_flusher(sleep).await }),
        tokio::spawn(async move {
            let Err(error) = cache.run_following(Duration::from_millis(500), sleep).await;
            println!("changes of others are not followed: {error}");
        }),
        tokio::spawn(sweep(tokens.clone(), schedule.sweep)),
        tokio::spawn(prune(tokens.clone(), schedule)),
        tokio::spawn(watch(tokens.clone(), Duration::from_millis(900))),
    ];

    let stopped = asked_to_stop()?;

    // The host's requests.
    let actor = Actor::signed_in(OwnerId::new("ada")?);
    let issued = tokens.generate(&actor, NewToken::named("nightly")).await?;
    for _ in 0..1_000 {
        tokens.verify(Credential::text(issued.plaintext.expose_secret())).await?;
    }
    tokio::select! {
        () = sleep(Duration::from_secs(2)) => {}
        () = stopped => {}
    }

    // Shuts down: no new requests, then the last uses are written, then the jobs are aborted.
    tokens.shutdown().await?;
    for job in jobs {
        job.abort();
    }
    let token = tokens.get(&actor, issued.token.id()).await?;
    println!(
        "shut down; last used: {}",
        token.last_used().map_or("never".into(), |used| used.at.to_rfc3339())
    );
    drop(tokens);
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", file.display()));
    }
    Ok(())
}

/// Returns a future that is ready on Ctrl-C, or on the SIGTERM that a supervisor sends.
///
/// Both are caught from the call on, so that neither ends the process before the future is polled.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let (mut interrupted, mut terminated) = {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    #[cfg(windows)]
    let (mut interrupted, mut terminated) =
        (tokio::signal::windows::ctrl_c()?, tokio::signal::windows::ctrl_close()?);
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
