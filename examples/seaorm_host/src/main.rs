//! The life of a token in PostgreSQL: `DATABASE_URL=… cargo run` in this folder.

use patkit::{
    Actor, Credential, Keyring, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind, Reason,
    TokenService,
};
use sea_orm::{ConnectionTrait, Database};
use seaorm_host::driver::{Transaction, store};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let database = Database::connect(std::env::var("DATABASE_URL")?).await?;
    let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).with_role("member");
    let users: MemoryDirectory = [ada].into_iter().collect();
    let store = store(&database).prefix("seaorm_host_").migrate().await?;
    let tokens =
        TokenService::builder(store, users).brand("acme").keyring(Keyring::ephemeral()?).build()?;

    let ada = Actor::signed_in(OwnerId::new("ada")?);
    let issued = tokens.generate(&ada, NewToken::named("ci")).await?;
    let text = issued.plaintext.expose_secret();
    let verified = tokens.verify(Credential::text(text)).await?;
    println!("{} is a token of {}", verified.token().id(), verified.owner().id());

    // A row of the host's and the revocation are committed together.
    let mut transaction = Transaction::begin(&database).await?;
    let sql = "CREATE TEMPORARY TABLE notes (text text); INSERT INTO notes VALUES ('ci is off')";
    transaction.get()?.execute_unprepared(sql).await?;
    let within = tokens.within(tokens.store().within(&mut transaction));
    within.revoke(&ada, issued.token.id(), Reason::Owner).await?;
    let uncommitted = within.into_uncommitted();
    transaction.commit().await?;
    tokens.after_commit(&uncommitted);

    let refused = tokens.verify(Credential::text(text)).await.map(drop);
    println!("after the commit: {:?}", refused.map_err(|error| error.reject_reason()));
    tokens.delete(&ada, issued.token.id()).await?;
    tokens.shutdown().await?;
    Ok(())
}
