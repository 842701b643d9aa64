//! How a websocket takes over from a session's polling: the probe, and the stream that
//! goes on from there.
//!
//! A client sends `2probe` on the new websocket, is answered `3probe`, finishes the poll
//! that waits, and sends `5` (Engine.IO protocol v4, "Upgrade"). engineioxide stops the
//! session's polling before all that, and ends the session when the probe fails. So the
//! probe is done here, where a failure concerns this websocket alone, and engineioxide
//! gets only the websockets that have passed. It reads the client's two packets again,
//! and its answer to them is not written a second time.
//!
//! Invariant: what is read before the `5` is bounded by [`MAX_BYTES`], and what is
//! answered by what is read.

use std::{
    io::{self, Cursor},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep_until},
};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::stream::Stream;

/// What a client may send before it asks for the upgrade, in bytes. A client needs 19.
const MAX_BYTES: usize = 1024;

/// Longest payload of a frame with a short header (RFC 6455, 5.2), and of any
/// control frame.
const MAX_PAYLOAD: usize = 125;

/// Pauses between two releases of the poll that waits, the first and the longest. A
/// client that has not yet read the `3probe` polls again after each release.
const RELEASE_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What the client has sent once its probe has passed, without a mask.
const ASKED: &[u8] = b"\x81\x86\0\0\0\x002probe\x81\x81\0\0\0\x005";

/// The frame that answers the probe.
const ANSWER: &[u8] = b"\x81\x063probe";

/// A close frame without a reason.
pub(super) const CLOSE: &[u8] = b"\x88\0";

/// Converses with the client until it asks for the upgrade. `unread` holds what the
/// client has sent and nobody has read, before the call and after it. `release_poll`
/// ends the poll that waits: the client waits for that before it goes on.
///
/// # Errors
/// When the connection ends, or when anything but a probe comes.
pub(super) async fn probe<S>(
    stream: &mut S,
    unread: &mut BytesMut,
    release_poll: impl Fn(),
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut budget = MAX_BYTES.saturating_sub(unread.len());
    let mut release: Option<Instant> = None;
    let (mut pause, longest_pause) = RELEASE_PAUSES;
    loop {
        while let Some((opcode, payload)) = take_frame(unread)? {
            match (opcode, &payload[..]) {
                (OpCode::Data(Data::Text), b"2probe") => {
                    stream.write_all(ANSWER).await?;
                    release.get_or_insert_with(Instant::now);
                }
                (OpCode::Data(Data::Text), b"5") if release.is_some() => return Ok(()),
                (OpCode::Control(Control::Ping), payload) => {
                    stream.write_all(&pong(payload)).await?;
                }
                (OpCode::Control(Control::Pong), _) => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let mut room = (&mut *unread).limit(budget);
        tokio::select! {
            read = stream.read_buf(&mut room) => match read? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => budget -= bytes,
            },
            () = sleep_until(release.unwrap_or_else(Instant::now)), if release.is_some() => {
                release_poll();
                release = Some(Instant::now() + pause);
                pause = (pause * 2).min(longest_pause);
            }
        }
    }
}

/// Takes the first frame out of `bytes` and unmasks it. `None`: the frame is incomplete.
///
/// # Errors
/// When the frame is not one of a probe: whole, masked and short.
fn take_frame(bytes: &mut BytesMut) -> io::Result<Option<(OpCode, BytesMut)>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut cursor = Cursor::new(&bytes[..]);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| invalid())?;
    let Some((header, length)) = parsed else {
        return Ok(None);
    };
    let is_plain = header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3;
    let mask = header.mask.filter(|_| is_plain).ok_or_else(invalid)?;
    let start = header.len(length);
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_PAYLOAD);
    let length = length.ok_or_else(invalid)?;
    if bytes.len() < start + length {
        return Ok(None);
    }
    bytes.advance(start);
    let mut payload = bytes.split_to(length);
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((header.opcode, payload)))
}

fn pong(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a control frame is short");
    [&[0x8a, length], payload].concat()
}

/// A websocket's stream, as Socket.IO gets it.
pub struct Websocket {
    stream: Stream,
    /// What was read from the stream already, and comes first.
    unread: Bytes,
    /// What Socket.IO is going to write and the client already has.
    answered: &'static [u8],
    /// Whether anything was written that has to be flushed. Until then, Socket.IO sees
    /// nothing of what happens to the stream: it completes the takeover with what was read
    /// already, and ends cleanly what it has begun.
    is_written: bool,
}

impl Websocket {
    /// A websocket that opens a session.
    pub(super) fn new(stream: Stream, unread: Bytes) -> Self {
        stream.begin_frames();
        Self {
            stream,
            unread,
            answered: b"",
            is_written: false,
        }
    }

    /// A websocket that takes over a session, after its [`probe`].
    pub(super) fn probed(stream: Stream, unread: &[u8]) -> Self {
        stream.begin_frames();
        Self {
            stream,
            unread: [ASKED, unread].concat().into(),
            answered: ANSWER,
            is_written: false,
        }
    }
}

impl AsyncRead for Websocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(length));
        if self.unread.is_empty() {
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Websocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.answered.is_empty() {
            self.is_written = true;
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        let length = self.answered.len().min(bytes.len());
        let (answered, rest) = self.answered.split_at(length);
        if bytes[..length] != *answered {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        self.answered = rest;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.is_written {
            true => Pin::new(&mut self.stream).poll_flush(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const PROBE: &str = "2probe";

    /// A masked frame, as clients send it.
    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let length = 0x80 | u8::try_from(payload.len()).unwrap();
        let masked = payload.iter().zip(mask.iter().cycle());
        let masked: Vec<u8> = masked.map(|(byte, mask)| byte ^ mask).collect();
        [&[first, length], &mask[..], &masked].concat()
    }

    fn text(payload: &str) -> Vec<u8> {
        frame(0x81, payload.as_bytes(), [7, 1, 0, 255])
    }

    /// Probes a client that sends these pieces. Returns the result, what was answered, and
    /// what was left unread.
    fn probed(sent: &[Vec<u8>]) -> (io::Result<()>, Vec<u8>, Vec<u8>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut server, client) = duplex(64 * 1024);
            let (mut answers, mut requests) = tokio::io::split::<DuplexStream>(client);
            let mut unread = BytesMut::new();
            let talk = async {
                for piece in sent {
                    requests.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                requests.shutdown().await.unwrap();
            };
            let (result, ()) = tokio::join!(probe(&mut server, &mut unread, || ()), talk);
            drop(server);
            let mut answered = Vec::new();
            answers.read_to_end(&mut answered).await.unwrap();
            (result, answered, unread.to_vec())
        })
    }

    #[test]
    fn a_probe_passes_and_leaves_what_comes_behind_it() {
        let sent = [text(PROBE), text("5"), text("40{}")].concat();
        let (result, answered, unread) = probed(&[sent]);
        result.unwrap();
        assert_eq!(answered, ANSWER);
        assert_eq!(unread, text("40{}"));
    }

    #[test]
    fn pings_are_answered_and_pongs_are_not() {
        let sent = [
            frame(0x89, b"are you there", [1, 2, 3, 4]),
            text(PROBE),
            frame(0x8a, b"", [0; 4]),
            text(PROBE),
            text("5"),
        ];
        let (result, answered, _) = probed(&sent);
        result.unwrap();
        let pong = b"\x8a\x0dare you there";
        assert_eq!(answered, [&pong[..], ANSWER, ANSWER].concat());
    }

    #[test]
    fn whatever_is_no_probe_fails() {
        let long = [&[0x81, 0xfe, 1, 0, 0, 0, 0, 0][..], &[b'x'; 256]].concat();
        let frames = [
            text("5"),
            text("2"),
            text("40"),
            frame(0x82, b"2probe", [0; 4]),
            frame(0x88, b"", [0; 4]),
            // Cut short, with a reserved bit, without a mask, and with an unknown opcode.
            frame(0x01, b"2pro", [0; 4]),
            frame(0xc1, b"2probe", [0; 4]),
            b"\x81\x062probe".to_vec(),
            frame(0x83, b"2probe", [0; 4]),
            long,
        ];
        for sent in frames {
            let (result, answered, _) = probed(std::slice::from_ref(&sent));
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{sent:?}");
            assert_eq!(answered, b"", "{sent:?}");
        }
        let (result, answered, _) = probed(&[[text(PROBE), text("42[]")].concat()]);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(answered, ANSWER);
    }

    #[test]
    fn what_is_read_before_the_upgrade_is_bounded() {
        let (result, answered, unread) = probed(&vec![text(PROBE); 1000]);
        result.unwrap_err();
        assert!(answered.len() <= MAX_BYTES, "{}", answered.len());
        assert!(unread.len() <= MAX_BYTES, "{}", unread.len());
    }

    #[tokio::test]
    async fn the_waiting_poll_is_released_at_once_and_then_less_and_less_often() {
        let (mut server, mut client) = duplex(1024);
        let released = std::cell::Cell::new(0);
        client.write_all(&text(PROBE)).await.unwrap();
        let release = || released.set(released.get() + 1);
        let mut unread = BytesMut::new();
        let probe = probe(&mut server, &mut unread, release);
        let a_while = Duration::from_millis(1400);
        assert!(tokio::time::timeout(a_while, probe).await.is_err());
        // At 0, 100, 300 and 700 ms; a busy machine may be late with some.
        assert!((1..=4).contains(&released.get()), "{}", released.get());
    }

    #[test]
    fn the_endpoint_reads_what_a_client_would_have_sent() {
        let mut asked = BytesMut::from(ASKED);
        for packet in [PROBE, "5"] {
            let (opcode, payload) = take_frame(&mut asked).unwrap().unwrap();
            assert_eq!(opcode, OpCode::Data(Data::Text));
            assert_eq!(payload, packet);
        }
        assert!(asked.is_empty());
    }

    proptest! {
        #[test]
        fn a_probe_passes_however_its_bytes_arrive(
            cuts in proptest::collection::vec(1usize..40, 0..20),
            mask in any::<[u8; 4]>(),
            behind in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let frames = [frame(0x81, b"2probe", mask), frame(0x81, b"5", mask)].concat();
            let sent = [&frames[..], &behind].concat();
            let mut rest = &sent[..];
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece.to_vec());
                rest = after;
            }
            pieces.push(rest.to_vec());
            let (result, answered, unread) = probed(&pieces);
            prop_assert!(result.is_ok());
            prop_assert_eq!(answered, ANSWER);
            prop_assert!(behind.starts_with(&unread));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = probed(&[bytes]);
        }
    }
}
