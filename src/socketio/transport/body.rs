//! A request's whole body, within limits of size and time.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest time in which a body arrives.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest pause within a body that arrives.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no body. The connection closes, since the rest of the body may still
/// come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBody {
    TooLarge,
    TooSlow,
    Broken,
}

impl IntoResponse for NoBody {
    fn into_response(self) -> Response {
        let status = match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        };
        let close = [(header::CONNECTION, "close")];
        let text = status.canonical_reason().unwrap_or_default();
        (status, close, text).into_response()
    }
}

/// Whether the body declares a size over `limit` bytes.
pub(super) fn is_too_large(body: &Body, limit: usize) -> bool {
    body.size_hint().lower() > limit as u64
}

/// Reads a body of `limit` bytes at most.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, NoBody> {
    read_within(body, limit, WHOLE_TIMEOUT, PAUSE_TIMEOUT).await
}

async fn read_within(
    mut body: Body,
    limit: usize,
    in_all: Duration,
    pause: Duration,
) -> Result<Bytes, NoBody> {
    if is_too_large(&body, limit) {
        return Err(NoBody::TooLarge);
    }
    let deadline = Instant::now() + in_all;
    let mut whole = BytesMut::new();
    loop {
        let frame = timeout_at(deadline, timeout(pause, body.frame())).await;
        let frame = frame.map_err(|_| NoBody::TooSlow)?;
        let Some(frame) = frame.map_err(|_| NoBody::TooSlow)? else {
            return Ok(whole.freeze());
        };
        // A frame without data is a trailer, which nobody here reads.
        let data = frame.map_err(|_| NoBody::Broken)?.into_data();
        let data = data.unwrap_or_default();
        if whole.len() + data.len() > limit {
            return Err(NoBody::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
}

/// Middleware that hands a request on once its whole body has arrived, of at most
/// `LIMIT` bytes.
pub async fn whole_body<const LIMIT: usize>(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match read(body, LIMIT).await {
        Ok(body) => next.run(Request::from_parts(parts, body.into())).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};

    use super::*;

    /// A body of `count` pieces of ten bytes, with a pause before each.
    fn pieces(count: usize, pause: Duration) -> Body {
        let pieces = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, Infallible>(Bytes::from_static(b"0123456789"))
        });
        Body::from_stream(pieces)
    }

    #[tokio::test]
    async fn a_body_has_its_size_and_its_time() {
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(60));
        let read = |body| read_within(body, 100, long, long);
        assert_eq!(read(pieces(10, short)).await.unwrap().len(), 100);
        assert_eq!(read(pieces(11, short)).await, Err(NoBody::TooLarge));
        assert_eq!(read(vec![0; 101].into()).await, Err(NoBody::TooLarge));
        let silent = read_within(pieces(1, long), 100, long, short);
        assert_eq!(silent.await, Err(NoBody::TooSlow));
        let trickling = read_within(pieces(1_000_000, short), usize::MAX, short * 20, long);
        assert_eq!(trickling.await, Err(NoBody::TooSlow));
    }
}
