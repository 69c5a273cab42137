//! The life of a token in PostgreSQL: `DATABASE_URL=… cargo run` in this folder.

use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use diesel_host::driver::{Driver, Within};
use diesel_host::pool::pool;
use patkit::{
    Actor, Credential, Keyring, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind, Reason,
    SqlStore, TokenService,
};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let pool = pool(&std::env::var("DATABASE_URL")?, 8)?;
    let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).with_role("member");
    let users: MemoryDirectory = [ada].into_iter().collect();
    let store = SqlStore::builder(Driver(pool.clone())).prefix("diesel_host_").migrate().await?;
    let tokens =
        TokenService::builder(store, users).brand("acme").keyring(Keyring::ephemeral()?).build()?;

    let ada = Actor::signed_in(OwnerId::new("ada")?);
    let issued = tokens.generate(&ada, NewToken::named("ci")).await?;
    let text = issued.plaintext.expose_secret();
    let verified = tokens.verify(Credential::text(text)).await?;
    println!("{} is a token of {}", verified.token().id(), verified.owner().id());

    // A row of the host's and the revocation are committed together.
    let sql = "CREATE TEMPORARY TABLE notes (text text); INSERT INTO notes VALUES ('ci is off')";
    let mut connection = pool.get().await?;
    let uncommitted = connection
        .transaction(async |connection| {
            connection.batch_execute(sql).await?;
            let within = tokens.within(tokens.store().within(Within(&mut **connection)));
            within.revoke(&ada, issued.token.id(), Reason::Owner).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(within.into_uncommitted())
        })
        .await?;
    tokens.after_commit(&uncommitted);

    let refused = tokens.verify(Credential::text(text)).await.map(drop);
    println!("after the commit: {:?}", refused.map_err(|error| error.reject_reason()));
    tokens.delete(&ada, issued.token.id()).await?;
    tokens.shutdown().await?;
    Ok(())
}
