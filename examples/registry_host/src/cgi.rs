//! Runs git's own server as a CGI program (RFC 3875): `git http-backend`.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, Response};
use http_body_util::BodyExt;
use patkit::OwnerId;
use std::error::Error;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio_util::io::ReaderStream;

/// The headers of a request that git reads, and the variables that hold them.
const HEADERS: [(&str, &str); 4] = [
    ("content-type", "CONTENT_TYPE"),
    ("content-length", "CONTENT_LENGTH"),
    ("content-encoding", "HTTP_CONTENT_ENCODING"),
    ("git-protocol", "GIT_PROTOCOL"),
];

/// Answers a request of a user for a path below the folder of the repositories.
///
/// Bodies are streamed, and the program ends when its pipes are closed. Its environment has no other
/// header of the request, so the program never learns the token.
pub async fn http_backend(
    folder: &Path,
    path: &str,
    user: &OwnerId,
    request: Request,
) -> Result<Response<Body>, Box<dyn Error + Send + Sync>> {
    let (parts, mut body) = request.into_parts();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("REQUEST_METHOD", parts.method.as_str()).env("PATH_INFO", format!("/{path}"));
    command.env("QUERY_STRING", parts.uri.query().unwrap_or_default());
    // Git accepts a push only if this is set.
    command.env("REMOTE_USER", user.as_str());
    for (header, variable) in HEADERS {
        if let Some(value) = parts.headers.get(header) {
            command.env(variable, value.to_str()?);
        }
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("git has no standard input")?;
    let mut stdout = BufReader::new(child.stdout.take().ok_or("git has no standard output")?);

    // Writes while the answer is read, because git may answer before it has read the whole body.
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            // Fails if git reads no further. Its answer says why.
            if stdin.write_all(&data).await.is_err() {
                break;
            }
        }
    });

    let mut answer = Response::new(());
    let mut line = String::new();
    // The head ends with an empty line.
    while stdout.read_line(&mut line).await? > 0 {
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name == "Status" {
            *answer.status_mut() = value.split(' ').next().unwrap_or_default().parse()?;
        } else {
            answer.headers_mut().append(HeaderName::try_from(name)?, value.parse()?);
        }
        line.clear();
    }
    if answer.headers().is_empty() {
        return Err("it ended without an answer".into());
    }
    Ok(answer.map(|()| Body::from_stream(ReaderStream::new(stdout))))
}
