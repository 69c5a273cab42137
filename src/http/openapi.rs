//! The management API as an `OpenAPI` document. The schemas come from the types of the requests and
//! answers.

use super::body::{
    EditBody, FieldErrorBody, IssuedBody, NewTokenBody, PageBody, ProblemBody, RevokedBody,
    RevokedByBody, RotateBody, TokenBody, UserBody,
};
use crate::store::MAX_PAGE;
use crate::token::TokenId;
use utoipa::ToSchema;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem, Paths,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    Response, ResponseBuilder, Schema, Server,
};

/// Returns the `OpenAPI` 3.1 document of a [`ManagementApi`](super::ManagementApi).
///
/// `base` is the path under which the API is mounted, such as `/api`, with or without a trailing
/// slash. Serve the document, write it to a file as JSON, or merge it into the host's document.
///
/// Its only security scheme is the bearer token; a host adds its own.
pub fn openapi(base: &str) -> OpenApi {
    let base = base.trim_end_matches('/');
    let info = InfoBuilder::new()
        .title("Personal access tokens")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Makes, shows, changes and deletes the tokens that scripts send instead of a password.",
        ));
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token in the Authorization header (RFC 6750 section 2.1)."))
        .build();
    let components = ComponentsBuilder::new()
        .schema_from::<NewTokenBody>()
        .schema_from::<EditBody>()
        .schema_from::<RotateBody>()
        .schema_from::<TokenBody>()
        .schema_from::<RevokedBody>()
        .schema_from::<RevokedByBody>()
        .schema_from::<UserBody>()
        .schema_from::<PageBody>()
        .schema_from::<IssuedBody>()
        .schema_from::<ProblemBody>()
        .schema_from::<FieldErrorBody>()
        .security_scheme("bearer", SecurityScheme::Http(bearer))
        .build();
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([Server::new(if base.is_empty() { "/" } else { base })]))
        .paths(paths())
        .components(Some(components))
        .security(Some([SecurityRequirement::new("bearer", [""; 0])]))
        .build()
}

fn paths() -> Paths {
    let list = |name: &str, summary: &str| {
        call(name, summary)
            .parameter(limit())
            .parameter(cursor())
            .response("200", answer::<PageBody>("A page of tokens, newest first."))
    };
    let generate = writing(call("generate_token", "Make a token."))
        .request_body(Some(body::<NewTokenBody>(Required::True)))
        .response("201", created())
        .response("409", problem(409))
        .response("429", limited());
    let show_current = call("show_current_token", "Show the token of this request.")
        .response("200", with_etag(answer::<TokenBody>("The token.")))
        .response("404", problem(404));
    let revoke_current = call("revoke_current_token", "Revoke the token of this request.")
        .response("204", ResponseBuilder::new().description("It is revoked.").build())
        .response("404", problem(404))
        .response("409", problem(409));
    let show = one("show_token", "Show a token.")
        .response("200", with_etag(answer::<TokenBody>("The token.")));
    let edit = |name: &str| {
        writing(one(name, "Rename, describe, revoke or restore a token, as one change."))
            .parameter(if_match())
            .request_body(Some(body::<EditBody>(Required::True)))
            .response("200", with_etag(answer::<TokenBody>("The token as it is now.")))
            .response("409", problem(409))
            .response("412", problem(412))
    };
    let delete = one("delete_token", "Delete a token that is revoked or expired.")
        .response("204", ResponseBuilder::new().description("It is deleted.").build())
        .response("409", problem(409));
    let rotate = writing(one("rotate_token", "Let a successor take the place of a token."))
        .request_body(Some(body::<RotateBody>(Required::False)))
        .response("201", created())
        .response("409", problem(409))
        .response("429", limited());

    let mut paths = Paths::new();
    let mut add = |path: &str, calls: Vec<(HttpMethod, OperationBuilder)>| {
        let item = calls.into_iter().fold(PathItem::default(), |mut item, (method, call)| {
            item.merge_operations(PathItem::new(method, call));
            item
        });
        paths.paths.insert(path.to_owned(), item);
    };
    add(
        "/user-tokens",
        vec![
            (HttpMethod::Get, list("list_tokens", "List one's own personal tokens.")),
            (HttpMethod::Post, generate),
        ],
    );
    let of_service = list("list_service_tokens", "List the service tokens of the realm.");
    add("/user-tokens/service", vec![(HttpMethod::Get, of_service)]);
    add(
        "/user-tokens/current",
        vec![(HttpMethod::Get, show_current), (HttpMethod::Delete, revoke_current)],
    );
    add(
        "/user-tokens/{id}",
        vec![
            (HttpMethod::Get, show),
            (HttpMethod::Put, edit("edit_token")),
            (HttpMethod::Patch, edit("patch_token")),
            (HttpMethod::Delete, delete),
        ],
    );
    add("/user-tokens/{id}/rotate", vec![(HttpMethod::Post, rotate)]);
    paths
}

/// Builds a call, with the refusals that any call may get.
fn call(name: &str, summary: &str) -> OperationBuilder {
    let start =
        OperationBuilder::new().operation_id(Some(name)).summary(Some(summary)).tag("user-tokens");
    [400, 401, 403, 412, 422, 503].into_iter().fold(start.parameter(user()), |call, status| {
        call.response(status.to_string(), problem(status))
    })
}

fn user() -> Parameter {
    let parameter = ParameterBuilder::new()
        .name("Patkit-User")
        .parameter_in(ParameterIn::Header)
        .required(Required::False);
    let description = "The marker in an earlier answer's `Patkit-User`: the call is refused if it is for another user. Needed by no \
                       client.";
    let schema = ObjectBuilder::new().schema_type(Type::String);
    parameter.description(Some(description)).schema(Some(schema)).build()
}

/// Builds a call on one token.
fn one(name: &str, summary: &str) -> OperationBuilder {
    call(name, summary).parameter(id()).response("404", problem(404))
}

/// Adds the refusals of a call with a body.
fn writing(call: OperationBuilder) -> OperationBuilder {
    [413, 415]
        .into_iter()
        .fold(call, |call, status| call.response(status.to_string(), problem(status)))
}

fn id() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(TokenId::TEXT_LEN))
        .max_length(Some(TokenId::TEXT_LEN))
        .pattern(Some("^[0-9A-Za-z]+$"));
    let parameter =
        ParameterBuilder::new().name("id").parameter_in(ParameterIn::Path).required(Required::True);
    parameter.description(Some("The token's public id.")).schema(Some(schema)).build()
}

fn if_match() -> Parameter {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    let parameter = ParameterBuilder::new().name("If-Match").parameter_in(ParameterIn::Header);
    let description = "The `ETag` of the token as it was read: the change is refused with 412 if the token was changed since.";
    parameter.required(Required::False).description(Some(description)).schema(Some(schema)).build()
}

fn limit() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
        .minimum(Some(1))
        .maximum(Some(MAX_PAGE));
    query("limit", "How many tokens at most; 50 where it is absent.", schema)
}

fn cursor() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(TokenId::TEXT_LEN))
        .max_length(Some(TokenId::TEXT_LEN))
        .pattern(Some("^[0-9A-Za-z]+$"));
    query("cursor", "`next` of the page before.", schema)
}

fn query(name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False);
    parameter.description(Some(description)).schema(Some(schema)).build()
}

fn body<T: ToSchema>(required: Required) -> RequestBody {
    let content = ContentBuilder::new().schema(Some(reference::<T>())).build();
    RequestBodyBuilder::new().content("application/json", content).required(Some(required)).build()
}

fn answer<T: ToSchema>(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(reference::<T>())).build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

fn created() -> Response {
    let answer = with_etag(answer::<IssuedBody>(
        "The token. This is the only answer that holds `bearer_token`.",
    ));
    with_header(answer, "Location", Type::String)
}

/// Builds the 429 answer. If the host has a limit, a 201 answer has both `RateLimit` fields too.
fn limited() -> Response {
    let headers = [
        ("Retry-After", Type::Integer),
        ("RateLimit", Type::String),
        ("RateLimit-Policy", Type::String),
    ];
    headers.into_iter().fold(problem(429), |answer, (name, kind)| with_header(answer, name, kind))
}

fn with_etag(answer: Response) -> Response {
    with_header(answer, "ETag", Type::String)
}

fn with_header(mut answer: Response, name: &str, kind: Type) -> Response {
    let schema = ObjectBuilder::new().schema_type(kind);
    answer.headers.insert(name.to_owned(), Header::new(Schema::from(schema)));
    answer
}

fn problem(status: u16) -> Response {
    let content = ContentBuilder::new().schema(Some(reference::<ProblemBody>())).build();
    let description = match status {
        400 => "The request is malformed.",
        401 => "There is no credential, or it is refused.",
        403 => "The actor may not do this.",
        404 => "There is no such token that the actor may see.",
        409 => "The name is taken, or the token's state does not allow it.",
        412 => {
            "The call expects another user than the one who is signed in, or the token was changed since it was read."
        }
        413 => "The body is too large.",
        415 => "The body is not application/json.",
        422 => "A field is unknown or refused.",
        429 => "Too many tokens were made in a short time.",
        _ => "The service is unavailable at the moment.",
    };
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build()
}

fn reference<T: ToSchema>() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(T::name()))
}
