//! The settings page, which a host mounts as it is and which is served from the binary.

use super::api::{Api, Caller};
use super::service::{
    Answer, AnswerFuture, BoxError, Methods, below, call_of, json, no_such_path, serve,
    with_headers,
};
use super::{ManagementApi, Sessions};
use crate::owner::{Directory, OwnerId};
use crate::permission::{Grant, PermissionError, PermissionSet};
use crate::policy::TokenPolicy;
use crate::policy::whole_days;
use crate::store::TokenStore;
use crate::token::{Lifetime, Reason};
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde::Serialize;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

const PAGE: &str = include_str!("console/page.html");
const STYLE: &str = include_str!("console/style.css");
const SCRIPT: &str = include_str!("console/script.js");

/// The page's content security policy.
///
/// It allows the page's own two files, same-origin files of a theme, and same-origin calls. No page
/// may frame this one, and no script may turn text into markup.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
);

/// The settings page of a [`ManagementApi`], where a signed-in user manages tokens. It is a service
/// that is mounted as the API is.
///
/// A user can list, create, revoke, restore, rotate, rename and delete tokens.
///
/// The page is three files without a build step, an external request, an inline script or an inline
/// style. It sends its own content security policy. The CSS variables at the top of `style.css` set
/// its theme. The page offers only what the actor may do, but the API decides.
///
/// ```no_run
/// # use patkit::http::{Authenticator, Console, ManagementApi};
/// # use patkit::{Actor, MemoryDirectory, MemoryStore};
/// # fn app(api: ManagementApi<MemoryStore, MemoryDirectory, fn(&http::request::Parts) -> Option<Actor>>) -> axum::Router {
/// let page = Console::builder(&api, "/api").title("Acme tokens").sign_in("/sign-in").build();
/// axum::Router::new().nest_service("/api", api).nest_service("/settings/tokens", page)
/// # }
/// ```
///
/// The page is at its base path, with or without a trailing slash. Its files are beside it, and its
/// links to them are relative, so that a proxy may serve the page under another path. If a router
/// removes the base path, as axum's `nest_service` does, the page needs the feature `axum` to be
/// found without the slash.
pub struct Console<S, D, A>(Arc<Page<S, D, A>>);

struct Page<S, D, A> {
    api: Arc<Api<S, D, A>>,
    base: String,
    html: String,
    style: Bytes,
    scopes: Option<Vec<Grant>>,
    service_users: Vec<Hint>,
}

/// The settings of a page.
pub struct ConsoleBuilder<S, D, A> {
    api: Arc<Api<S, D, A>>,
    path: String,
    base: String,
    title: String,
    sign_in: String,
    theme: String,
    scopes: Option<Vec<Grant>>,
    service_users: Vec<Hint>,
}

/// A service user that the page suggests.
#[derive(Clone, Serialize)]
struct Hint {
    id: String,
    name: String,
}

impl<S: TokenStore + 'static, D: Directory + 'static, A: Sessions> Console<S, D, A> {
    /// Creates the page of this API with default settings. Browsers find the API under `path`, such
    /// as `/api`.
    pub fn new(api: &ManagementApi<S, D, A>, path: &str) -> Self {
        Self::builder(api, path).build()
    }

    /// Creates a builder for a page with other settings.
    pub fn builder(api: &ManagementApi<S, D, A>, path: &str) -> ConsoleBuilder<S, D, A> {
        ConsoleBuilder {
            api: api.shared(),
            path: path.trim_end_matches('/').to_owned(),
            base: String::new(),
            title: "Access tokens".to_owned(),
            sign_in: String::new(),
            theme: String::new(),
            scopes: None,
            service_users: Vec::new(),
        }
    }
}

impl<S, D, A> ConsoleBuilder<S, D, A> {
    /// Answers at this path, such as `/settings/tokens`, with or without a trailing slash. Defaults
    /// to the root. [`ManagementApiBuilder::base_path`](super::ManagementApiBuilder::base_path)
    /// says when to set it.
    pub fn base_path(mut self, path: &str) -> Self {
        path.trim_end_matches('/').clone_into(&mut self.base);
        self
    }

    /// Sets the page's title. Defaults to "Access tokens".
    pub fn title(mut self, title: &str) -> Self {
        title.clone_into(&mut self.title);
        self
    }

    /// Sets the URL of the host's sign-in, to which the page links when a session has expired.
    ///
    /// Without a URL, the page asks the user to sign in in another tab. An open form keeps its
    /// input, because its link opens a new tab.
    pub fn sign_in(mut self, url: &str) -> Self {
        url.clone_into(&mut self.sign_in);
        self
    }

    /// Adds style rules of the host after the page's own, such as
    /// `:root { --patkit-accent: #0a7; }`.
    ///
    /// The variables are described at the top of `style.css`. Fonts, images and style sheets of the
    /// rules must be on the origin of the page (scheme, host and port), because its content
    /// security policy blocks all others, including `data:`. A relative URL is resolved against
    /// `style.css`, so a path from the root is safer:
    ///
    /// ```css
    /// @font-face { font-family: Acme; src: url(/static/acme.woff2); }
    /// :root { --patkit-font: Acme, sans-serif; }
    /// ```
    pub fn theme(mut self, css: &str) -> Self {
        css.clone_into(&mut self.theme);
        self
    }

    /// Sets the permissions that the page offers, such as `reports:read` or `reports:*`, in this
    /// order.
    ///
    /// Defaults to all permissions of the actor. The page offers only permissions that the actor
    /// holds at that moment: of `reports:*`, it offers only `reports:read` to an actor who holds
    /// only `reports:read`. Other permissions that the actor holds can be typed in.
    ///
    /// # Errors
    /// [`PermissionError`] if a text is neither a permission nor a grant.
    pub fn scopes<T: AsRef<str>>(
        mut self,
        scopes: impl IntoIterator<Item = T>,
    ) -> Result<Self, PermissionError> {
        let grants = scopes.into_iter().map(|scope| Grant::parse(scope.as_ref()));
        self.scopes = Some(grants.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// Adds a service user that the page suggests to an admin. Others can be typed in.
    pub fn service_user(mut self, id: &OwnerId, name: &str) -> Self {
        self.service_users.push(Hint { id: id.as_str().to_owned(), name: name.to_owned() });
        self
    }

    /// Builds the page.
    pub fn build(self) -> Console<S, D, A> {
        Console(Arc::new(Page {
            html: page(&self.path, &self.title, &self.sign_in),
            style: format!("{STYLE}\n{}", self.theme).into(),
            api: self.api,
            base: self.base,
            scopes: self.scopes,
            service_users: self.service_users,
        }))
    }
}

impl<S, D, A> Clone for Console<S, D, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, D, A> fmt::Debug for Console<S, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("base_path", &self.0.base).finish_non_exhaustive()
    }
}

impl<S, D, A> fmt::Debug for ConsoleBuilder<S, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleBuilder")
            .field("path", &self.path)
            .field("title", &self.title)
            .finish_non_exhaustive()
    }
}

/// Mounts the service in an `App` or a scope, for all paths below its base path.
#[cfg(feature = "actix")]
impl<S, D, A> actix_web::dev::HttpServiceFactory for Console<S, D, A>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    A: Sessions,
{
    fn register(self, config: &mut actix_web::dev::AppService) {
        let base = self.0.base.clone();
        super::actix::register(self, &base, config);
    }
}

impl<S, D, A, B> Service<Request<B>> for Console<S, D, A>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    A: Sessions,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> AnswerFuture {
        let page = self.0.clone();
        page.api.authenticator().mark_as_sensitive(request.headers_mut());
        serve(request, async move |parts, _| page.answer(&parts).await)
    }
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Html,
    Style,
    Script,
    Settings,
}

fn route(path: &str) -> Option<Methods<Call>> {
    match path {
        "" | "/" => Some(&[(Method::GET, Call::Html)]),
        "/style.css" => Some(&[(Method::GET, Call::Style)]),
        "/script.js" => Some(&[(Method::GET, Call::Script)]),
        "/settings.json" => Some(&[(Method::GET, Call::Settings)]),
        _ => None,
    }
}

impl<S: TokenStore, D: Directory, A: Sessions> Page<S, D, A> {
    async fn answer(&self, parts: &Parts) -> Answer {
        let path = below(parts.uri.path(), &self.base);
        let call = call_of(path.and_then(route).ok_or_else(no_such_path)?, &parts.method)?;
        Ok(match call {
            Call::Html => {
                let html = self.html.replace("{{base}}", &escaped(&files_of(parts)));
                file("text/html; charset=utf-8", html.into())
            }
            Call::Style => file("text/css; charset=utf-8", self.style.clone()),
            Call::Script => {
                file("text/javascript; charset=utf-8", Bytes::from_static(SCRIPT.as_bytes()))
            }
            Call::Settings => {
                let caller = self.api.caller(parts).await?;
                let settings = self.settings(&caller).await;
                caller.name_in(settings)
            }
        })
    }

    async fn settings(&self, caller: &Caller) -> Answer {
        let tokens = self.api.authenticator().tokens();
        let standing = tokens.standing(&caller.actor).await;
        let standing = standing.map_err(|error| self.api.not_done(&error, caller))?;
        let user = standing.owner.as_ref().map_or_else(
            || Hint { id: String::new(), name: String::new() },
            |owner| Hint {
                id: owner.id().as_str().to_owned(),
                name: owner.name().unwrap_or(owner.id().as_str()).to_owned(),
            },
        );
        let settings = Settings {
            user,
            may: May {
                personal: standing.manages_tokens,
                service: standing.manages_service_tokens,
                scim: standing.grants_scim,
            },
            scopes: offered(self.scopes.as_deref(), &standing.permissions, standing.grants_scim),
            holds: standing.permissions.iter().map(ToString::to_string).collect(),
            service_users: if standing.manages_service_tokens { &self.service_users } else { &[] },
            policy: Policy::of(tokens.policy()),
            final_reasons: final_reasons(),
        };
        Ok(json(StatusCode::OK, &settings))
    }
}

fn page(path: &str, title: &str, sign_in: &str) -> String {
    let filled = [("{{api}}", path), ("{{title}}", title), ("{{sign_in}}", sign_in)];
    filled
        .into_iter()
        .fold(PAGE.to_owned(), |page, (place, text)| page.replace(place, &escaped(text)))
}

/// Escapes a text for an element or a quoted attribute. Braces are escaped as well, so that no text
/// becomes a placeholder for another.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '{' => escaped.push_str("&#123;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Returns the path of the page's files, relative to the page's own path.
///
/// The files are beside the page if its path ends with a slash, and else in a folder of its name.
/// The path is relative so that a proxy may serve the page under another path.
fn files_of(parts: &Parts) -> String {
    let path = parts.uri.path();
    #[cfg(feature = "axum")]
    let path = super::axum::original_path(&parts.extensions).unwrap_or(path);
    match path.rsplit('/').next() {
        None | Some("") => String::new(),
        Some(last) => format!("./{last}/"),
    }
}

fn file(content_type: &'static str, text: Bytes) -> Response<Full<Bytes>> {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // Browsers must revalidate, because another version of the crate has different files under
        // the same names.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    with_headers(StatusCode::OK, headers, text)
}

/// The actor's settings, which the page requests.
#[derive(Serialize)]
struct Settings<'a> {
    user: Hint,
    may: May,
    /// The permissions that the page offers for a scope.
    scopes: Vec<String>,
    /// All permissions of the actor.
    holds: Vec<String>,
    service_users: &'a [Hint],
    policy: Policy,
    /// The reasons after which no token is restored.
    final_reasons: Vec<&'static str>,
}

#[derive(Serialize)]
struct May {
    personal: bool,
    service: bool,
    scim: bool,
}

/// Lifetimes in days. `null` is an unlimited lifetime.
#[derive(Serialize)]
struct Policy {
    lifetimes: Vec<Option<i64>>,
    default_days: Option<u64>,
    longest_days: Option<u64>,
    never: bool,
    longest_overlap_seconds: u64,
}

impl Policy {
    fn of(policy: &TokenPolicy) -> Self {
        let days = |lifetime: &Lifetime| match lifetime {
            Lifetime::Days(days) => Some(Some(i64::from(*days))),
            Lifetime::Never => Some(None),
            // The page offers only whole days.
            Lifetime::Seconds(_) | Lifetime::Default => None,
        };
        Self {
            lifetimes: policy.shown_lifetimes().iter().filter_map(days).collect(),
            default_days: Some(whole_days(policy.default_lifetime())),
            longest_days: policy.longest_lifetime().map(whole_days),
            never: policy.is_never_allowed(),
            longest_overlap_seconds: policy.longest_overlap().as_secs(),
        }
    }
}

fn final_reasons() -> Vec<&'static str> {
    Reason::ALL.into_iter().filter(|reason| reason.is_final()).map(Reason::as_str).collect()
}

/// Returns the part of `wanted` that the actor holds, in the order of `wanted`, or all that the
/// actor holds if `wanted` is `None`.
///
/// A scope that covers `scim:` needs a separate permission.
fn offered(wanted: Option<&[Grant]>, held: &PermissionSet, grants_scim: bool) -> Vec<String> {
    let within = |grant: &Grant| -> Vec<Grant> {
        if held.covers_grant(grant) {
            return vec![grant.clone()];
        }
        held.iter().filter(|held| grant.covers_grant(held)).cloned().collect()
    };
    let grants = wanted.map_or_else(
        || held.iter().cloned().collect(),
        |wanted| wanted.iter().flat_map(within).collect::<Vec<Grant>>(),
    );
    let mut offered = Vec::new();
    for grant in grants {
        let is_scim = grant.as_str() == "*" || grant.as_str().starts_with("scim:");
        let text = grant.to_string();
        if (grants_scim || !is_scim) && !offered.contains(&text) {
            offered.push(text);
        }
    }
    offered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_text_for_each_reason() {
        let script = include_str!("console/script.js");
        let (_, rest) = script.split_once("const REASONS = {").unwrap();
        let (texts, _) = rest.split_once("};").unwrap();
        for reason in Reason::ALL {
            assert!(texts.contains(&format!("\t{reason}: \"")), "{reason}");
        }
    }

    #[test]
    fn the_page_is_told_which_reasons_are_final() {
        assert_eq!(final_reasons(), ["rotated", "reuse", "compromised"]);
        assert!(include_str!("console/script.js").contains("settings.final_reasons.includes("));
    }

    #[test]
    fn the_page_offers_no_more_than_the_actor_holds() {
        type Texts = &'static [&'static str];
        let cases: [(Option<Texts>, Texts, bool, Texts); 13] = [
            (None, &["b:read", "a:*"], false, &["a:*", "b:read"]),
            (None, &[], true, &[]),
            (Some(&["b:write", "b:read", "a:x"]), &["b:read", "a:*"], false, &["b:read", "a:x"]),
            (Some(&["b:*"]), &["b:read", "b:write", "bb:read"], false, &["b:read", "b:write"]),
            (Some(&["b:*", "b:read"]), &["b:read"], false, &["b:read"]),
            (Some(&["*"]), &["b:read"], false, &["b:read"]),
            (Some(&["b:read", "a"]), &["*"], true, &["b:read", "a"]),
            (Some(&["a"]), &["a:*"], false, &[]),
            (Some(&["a:b:c"]), &["a:b:*"], false, &["a:b:c"]),
            (Some(&["b:read"]), &[], true, &[]),
            (Some(&["scim:users", "a:b"]), &["scim:*", "a:b"], false, &["a:b"]),
            (Some(&["scim:users", "a:b"]), &["scim:*", "a:b"], true, &["scim:users", "a:b"]),
            (None, &["*", "scim:users", "scim"], false, &["scim"]),
        ];
        for (wanted, held, grants_scim, expected) in cases {
            let parsed = wanted.map(|texts| {
                texts.iter().map(|text| Grant::parse(text).unwrap()).collect::<Vec<_>>()
            });
            let held = PermissionSet::parse(held).unwrap();
            assert_eq!(
                offered(parsed.as_deref(), &held, grants_scim),
                expected,
                "{wanted:?} {held:?}"
            );
        }
    }

    #[test]
    fn the_hosts_texts_are_texts_and_fill_no_other_place() {
        let page = page("/api", "<b>\"{{sign_in}}\" & 'more'</b>", "javascript:'\"><script>");
        assert!(page.contains(
            "<title>&lt;b&gt;&quot;&#123;&#123;sign_in}}&quot; &amp; &#39;more&#39;&lt;/b&gt;</title>"
        ));
        assert!(page.contains(r#"content="javascript:&#39;&quot;&gt;&lt;script&gt;""#));
        assert_eq!(
            page.matches("{{").count(),
            2,
            "the two places of the base are filled with each request"
        );
    }

    /// The limit for the three files together.
    const MOST_BYTES: usize = 76_000;

    #[test]
    fn the_page_is_small_and_has_nothing_inline() {
        assert!(PAGE.len() + STYLE.len() + SCRIPT.len() < MOST_BYTES);
        assert!(!PAGE.contains("style=") && !PAGE.contains("<style"));
        assert!(!PAGE.split_whitespace().any(|word| word.starts_with("on") && word.contains('=')));
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert!(!SCRIPT.contains("innerHTML") && !STYLE.contains("url("));
    }
}
