//! The sessions of browsers: a cookie of `tower-sessions`, and the user of `axum-login`.

use axum::Form;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum_login::{AuthUser, AuthnBackend};
use serde::Deserialize;
use std::convert::Infallible;
use std::{fmt, sync::Arc};

/// The session of a request, which the layer of `axum-login` puts into its extensions.
pub(crate) type Session = axum_login::AuthSession<Accounts>;

/// The accounts of this example, with their passwords. Yours have hashes, such as those of argon2.
#[derive(Clone)]
pub(crate) struct Accounts(pub(crate) Arc<[Account]>);

#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) name: &'static str,
    pub(crate) password: &'static str,
}

/// Without the password, because `axum-login` logs accounts.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl AuthUser for Account {
    type Id = String;

    fn id(&self) -> String {
        self.name.to_owned()
    }

    /// A new password ends all sessions.
    fn session_auth_hash(&self) -> &[u8] {
        self.password.as_bytes()
    }
}

/// The fields of the form.
#[derive(Clone, Deserialize)]
pub(crate) struct SignIn {
    user: String,
    password: String,
}

impl AuthnBackend for Accounts {
    type User = Account;
    type Credentials = SignIn;
    type Error = Infallible;

    async fn authenticate(&self, form: SignIn) -> Result<Option<Account>, Infallible> {
        let account = self.get_user(&form.user).await?;
        Ok(account.filter(|account| account.password == form.password))
    }

    async fn get_user(&self, name: &String) -> Result<Option<Account>, Infallible> {
        Ok(self.0.iter().find(|account| account.name == name).cloned())
    }
}

pub(crate) async fn home(session: Session) -> Html<String> {
    Html(match session.user {
        Some(account) => format!(
            "<p>You are {}. <a href=\"/settings/tokens\">Your tokens</a>\
             <form method=\"post\" action=\"/sign-out\"><button>Sign out</button></form>\n",
            account.name
        ),
        None => "<form method=\"post\" action=\"/sign-in\">\
                 <input name=\"user\"><input name=\"password\" type=\"password\">\
                 <button>Sign in</button></form>\n"
            .to_owned(),
    })
}

pub(crate) async fn sign_in(mut session: Session, Form(form): Form<SignIn>) -> Response {
    match session.authenticate(form).await {
        Ok(Some(account)) => match session.login(&account).await {
            Ok(()) => Redirect::to("/").into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        Ok(None) => (StatusCode::UNAUTHORIZED, "wrong user or password\n").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

pub(crate) async fn sign_out(mut session: Session) -> Response {
    match session.logout().await {
        Ok(_) => Redirect::to("/").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
