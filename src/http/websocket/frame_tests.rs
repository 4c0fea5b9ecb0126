use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::Message as Other;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

use super::*;

const MAX: usize = 5000;
/// A control frame may come within a message.
const MOST_HELD: usize = MAX + 125 + 14;
const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

/// A masked frame with this first byte.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    write(&mut frame, Opcode::Text, &[payload]);
    let head = frame.len() - payload.len();
    let mut frame = frame.to_vec();
    (frame[0], frame[1]) = (first, frame[1] | 0x80);
    frame.splice(head..head, MASK);
    unmask(&mut frame[head + 4..], MASK, 0);
    frame
}

/// All that a decoder takes from a stream that comes in these pieces, and the end if it is the decoder's.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, Option<Close>) {
    let (mut decoder, mut buffer, mut events) = (Decoder::new(MAX), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(close) => return (events, Some(close)),
            }
        }
        let held = buffer.len() + decoder.held();
        assert!(held + decoder.missing(&buffer) <= MOST_HELD, "{held} bytes are held");
    }
    (events, None)
}

fn text(text: &str) -> Event {
    Event::Text(Text(Bytes::copy_from_slice(text.as_bytes())))
}

/// Frames that follow the rules more often than not.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let first =
        prop_oneof![8 => prop::sample::select(&[0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A]), 1 => any::<u8>()];
    let payload = prop_oneof![
        "\\PC{0,40}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..130),
        (2000..MAX + 10).prop_map(|length| vec![b'x'; length]),
    ];
    (first, payload).prop_map(|(first, payload)| masked(first, &payload))
}

proptest! {
    #[test]
    fn a_stream_says_the_same_in_pieces_of_any_size(
        frames in prop_oneof![vec(frame(), 0..8), vec(vec(any::<u8>(), 0..40), 1)],
        sizes in vec(1..3000_usize, 1..20),
    ) {
        let stream = frames.concat();
        let mut rest = &stream[..];
        let pieces = sizes.iter().cycle().map_while(|size| {
            let (piece, after) = rest.split_at_checked(*size).unwrap_or((rest, &[]));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        });
        let in_pieces = read(pieces);
        prop_assert_eq!(&in_pieces, &read(stream.chunks(1)));
        prop_assert_eq!(in_pieces, read_whole(&stream));
    }

    #[test]
    fn what_tungstenite_writes_is_read(messages in vec(message(), 0..8)) {
        let mut client = WebSocket::from_raw_socket(Cursor::new(Vec::new()), Role::Client, None);
        for message in &messages {
            client.send(message.clone()).expect("a vector takes everything");
        }
        let events: Vec<_> = messages.into_iter().map(|message| match message {
            Other::Text(said) => text(&said),
            Other::Binary(bytes) => Event::Binary(bytes),
            Other::Ping(bytes) => Event::Ping(bytes),
            _ => Event::Pong,
        }).collect();
        prop_assert_eq!(read_whole(client.get_ref().get_ref()), (events, None));
    }

    #[test]
    fn tungstenite_reads_what_is_written(messages in vec(message(), 0..8), reason in "\\PC{0,30}") {
        let mut out = BytesMut::new();
        for message in &messages {
            let opcode = match message {
                Other::Text(_) => Opcode::Text,
                Other::Binary(_) => Opcode::Binary,
                Other::Ping(_) => Opcode::Ping,
                _ => Opcode::Pong,
            };
            write(&mut out, opcode, &[&message.clone().into_data()]);
        }
        write_close(&mut out, 4000, &reason);
        let mut client = WebSocket::from_raw_socket(Cursor::new(out.to_vec()), Role::Client, None);
        for message in messages {
            prop_assert_eq!(client.read().expect("a message"), message);
        }
        let Other::Close(Some(close)) = client.read().expect("a Close frame") else { panic!("it was the last") };
        prop_assert_eq!((u16::from(close.code), close.reason.as_str()), (4000, &*reason));
    }
}

/// All at once: a decoder that is given more than it asked for takes no harm.
fn read_whole(stream: &[u8]) -> (Vec<Event>, Option<Close>) {
    let (mut decoder, mut buffer, mut events) = (Decoder::new(MAX), BytesMut::from(stream), Vec::new());
    loop {
        match decoder.next(&mut buffer) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(close) => return (events, Some(close)),
        }
    }
}

fn message() -> impl Strategy<Value = Other> {
    let bytes = |most| vec(any::<u8>(), 0..most).prop_map(Bytes::from);
    prop_oneof![
        "\\PC{0,100}".prop_map(Other::text),
        (100..MAX).prop_map(|length| Other::text("x".repeat(length))),
        bytes(MAX).prop_map(Other::Binary),
        bytes(126).prop_map(Other::Ping),
        bytes(126).prop_map(Other::Pong),
    ]
}

#[test]
fn heads_of_each_length_are_written_and_read() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
        let payload = vec![b'x'; length];
        let mut buffer = BytesMut::from(&masked(0x82, &payload)[..]);
        let read = Decoder::new(length).next(&mut buffer);
        assert_eq!((read, buffer.len()), (Ok(Some(Event::Binary(payload.into()))), 0), "{length}");
    }
}

#[test]
fn what_is_too_large_is_told_by_its_head_and_what_is_just_as_large_is_taken() {
    let whole = masked(0x81, &[b'x'; MAX]);
    assert_eq!(read_whole(&whole), (vec![text(&"x".repeat(MAX))], None));
    let halves = |rest: usize| [masked(0x01, &[b'x'; MAX / 2]), masked(0x80, &vec![b'x'; rest])].concat();
    assert_eq!(read_whole(&halves(MAX / 2)), (vec![text(&"x".repeat(MAX))], None));
    assert_eq!(read_whole(&halves(MAX / 2 + 1)[..8 + MAX / 2 + 4]), (vec![], Some(Close::FrameTooLarge)));
    assert_eq!(read_whole(&masked(0x81, &[b'x'; MAX + 1])[..4]), (vec![], Some(Close::FrameTooLarge)));
    let long = |length: u64| [&[0x81, 0xFF][..], &length.to_be_bytes()].concat();
    assert_eq!(read_whole(&long(1 << 62)).1, Some(Close::FrameTooLarge));
    assert_eq!(read_whole(&long(1 << 63)).1, Some(Close::ProtocolError));
}

#[test]
fn a_ping_comes_through_the_largest_message() {
    let said = [b'x'; 125];
    let stream = [masked(0x01, &[b'x'; MAX]), masked(0x89, &said), masked(0x80, b"")].concat();
    let events = [Event::Ping(Bytes::copy_from_slice(&said)), text(&"x".repeat(MAX))];
    assert_eq!(read(stream.chunks(1)), (events.to_vec(), None));
}

#[test]
fn text_that_can_become_none_is_told_before_it_is_whole() {
    let frame = masked(0x81, "κόσμε".as_bytes());
    assert_eq!(read(frame.chunks(1)).0, [text("κόσμε")]);
    for bad in [&b"\xFF"[..], b"\xC0", b"\xED\xA0", b"\xF4\x90", b"\xE2\x82x", b"\xF0\x80"] {
        let payload = [b"so far so good ", bad, b" and more"].concat();
        let seen = 6 + 15 + bad.len();
        let frame = masked(0x81, &payload);
        assert_eq!(read_whole(&frame[..seen - 1]), (vec![], None), "{bad:?}");
        assert_eq!(read_whole(&frame[..seen]), (vec![], Some(Close::InvalidUtf8)), "{bad:?}");
    }
    let split = [masked(0x01, b"\xE2"), masked(0x89, b"\xFF"), masked(0x00, b"\x82"), masked(0x80, b"\xAC")].concat();
    assert_eq!(read_whole(&split), (vec![Event::Ping(Bytes::from_static(b"\xFF")), text("€")], None));
    assert_eq!(read_whole(&masked(0x81, b"\xE2\x82")).1, Some(Close::InvalidUtf8));
}

#[test]
fn close_frames_say_what_they_may() {
    let close = |payload: &[u8]| read_whole(&masked(0x88, payload));
    assert_eq!(close(b""), (vec![Event::Close(None)], None));
    assert_eq!(close(b"\x03").1, Some(Close::ProtocolError));
    assert_eq!(close(b"\x03\xE8\xFF").1, Some(Close::InvalidUtf8));
    for code in [1000, 1003, 1007, 1014, 3000, 4999_u16] {
        assert_eq!(close(&code.to_be_bytes()), (vec![Event::Close(Some(code))], None));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
        assert_eq!(close(&code.to_be_bytes()).1, Some(Close::ProtocolError), "{code}");
    }
}

#[test]
fn a_large_payload_leaves_no_memory_behind() {
    let mut buffer = BytesMut::from(&[masked(0x82, &[0; MAX]), vec![0x81]].concat()[..]);
    assert!(matches!(Decoder::new(MAX).next(&mut buffer), Ok(Some(Event::Binary(_)))));
    assert_eq!(buffer[..], [0x81]);
    assert!(buffer.capacity() < 64 && !buffer.try_reclaim(64), "what is left stands alone");
}
