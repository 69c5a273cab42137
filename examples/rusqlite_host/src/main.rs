//! The life of a token in a file of SQLite: `cargo run` in this folder.

use patkit::store::sql::Session;
use patkit::{
    Actor, Credential, Keyring, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind, Reason,
    SqlStore, TokenService,
};
use rusqlite_host::pool::Pool;
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::temp_dir().join(format!("rusqlite_host-{}.db", std::process::id()));
    let pool = Pool::open(&file, 4)?;
    let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).with_role("member");
    let users: MemoryDirectory = [ada].into_iter().collect();
    let tokens = TokenService::builder(SqlStore::builder(pool.clone()).migrate().await?, users)
        .brand("acme")
        .keyring(Keyring::ephemeral()?)
        .build()?;
    tokens.check().await?;

    let ada = Actor::signed_in(OwnerId::new("ada")?);
    let issued = tokens.generate(&ada, NewToken::named("ci")).await?;
    let text = issued.plaintext.expose_secret();
    let verified = tokens.verify(Credential::text(text)).await?;
    println!("{} is a token of {}", verified.token().id(), verified.owner().id());

    // A row of the host's and the revocation are committed together.
    let mut transaction = pool.get().await?;
    transaction.begin("BEGIN IMMEDIATE").await?;
    let sql = "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('ci is off')";
    transaction.call(move |connection| connection.execute_batch(sql)).await?;
    let within = tokens.within(tokens.store().within(&mut transaction));
    within.revoke(&ada, issued.token.id(), Reason::Owner).await?;
    let uncommitted = within.into_uncommitted();
    transaction.commit().await?;
    tokens.after_commit(&uncommitted);

    let refused = tokens.verify(Credential::text(text)).await.map(drop);
    println!("after the commit: {:?}", refused.map_err(|error| error.reject_reason()));
    tokens.shutdown().await?;
    drop((transaction, tokens, pool));
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", file.display()));
    }
    Ok(())
}
