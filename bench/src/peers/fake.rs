//! Servers for tests: as right or as wrong as is asked for, in threads of this process, on loopback.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use zerocopy::{FromBytes, IntoBytes};

use super::{
    memcached::Frame,
    resp,
    setting::Dialect,
    wire::{line, number},
};

/// Longest value that a fake stores.
const VALUE_LEN_MAX: usize = 1 << 20;

/// What a fake does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// It forgets the record 0.
    Forgets,
    /// It changes a byte of the record 0.
    Damages,
    /// It closes its connections after so many commands of each.
    Closes(u32),
    /// After so many commands it says what is not of the protocol.
    Babbles(u32),
    /// After so many commands it refuses one.
    Refuses(u32),
    /// It does not send each n-th datagram.
    Loses(u32),
    /// It answers no datagram.
    Mute,
}

/// A fake, until it is dropped.
pub(super) struct Fake {
    pub(super) addr: SocketAddr,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Store {
    values: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    is_resp: bool,
    fault: Fault,
}

/// One command: what is got, or what is put where.
enum Asked {
    Get(Vec<Vec<u8>>),
    MultiGet(Vec<Vec<u8>>),
    Put(Vec<u8>, Vec<u8>),
}

impl Fake {
    pub(super) fn start(dialect: Dialect, fault: Fault) -> Self {
        let store = Arc::new(Store { values: Mutex::default(), is_resp: dialect.is_resp(), fault });
        let end = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut threads = Vec::new();
        if dialect == Dialect::Datagrams {
            let socket = UdpSocket::bind(addr).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let (store, end) = (Arc::clone(&store), Arc::clone(&end));
            threads.push(thread::spawn(move || store.serve_datagrams(&socket, &end)));
        }
        let accepting = Arc::clone(&end);
        threads.push(thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.load(Ordering::Relaxed) {
                    break;
                }
                let store = Arc::clone(&store);
                thread::spawn(move || drop(store.serve(stream)));
            }
        }));
        Self { addr, end, threads }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.addr));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Store {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut input, mut part, mut commands) = (Vec::new(), [0; 64 << 10], 0);
        loop {
            let mut out = Vec::new();
            let mut begin = 0;
            while let Some((asked, len)) = self.parse(&input[begin..]) {
                begin += len;
                commands += 1;
                match self.fault {
                    Fault::Closes(after) if commands > after => {
                        stream.write_all(&out)?;
                        return stream.shutdown(Shutdown::Both);
                    }
                    Fault::Babbles(after) if commands > after => out.extend_from_slice(b"VALUE what\r\n"),
                    Fault::Refuses(after) if commands > after => {
                        out.extend_from_slice(if self.is_resp {
                            b"-ERR no\r\n"
                        } else {
                            b"SERVER_ERROR no\r\n"
                        });
                    }
                    _ => self.answer(asked).into_iter().for_each(|piece| out.extend(piece)),
                }
            }
            input.drain(..begin);
            // In pieces of all lengths.
            let mut rest = &out[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at((1 + commands as usize * 7_919 % 3_000).min(rest.len()));
                stream.write_all(now)?;
                rest = later;
            }
            match stream.read(&mut part)? {
                0 => return Ok(()),
                len => input.extend_from_slice(&part[..len]),
            }
        }
    }

    fn serve_datagrams(&self, socket: &UdpSocket, end: &AtomicBool) {
        let (mut datagram, mut sent) = ([0; 64 << 10], 0);
        while !end.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut datagram) else { continue };
            let (frame, rest) = Frame::ref_from_prefix(&datagram[..len]).unwrap();
            let (asked, asked_len) = self.parse(rest).expect("a datagram holds a whole request");
            assert_eq!(asked_len, rest.len());
            for piece in self.answer(asked) {
                sent += 1;
                let is_lost = match self.fault {
                    Fault::Loses(nth) => sent % nth == 0,
                    Fault::Mute => true,
                    _ => false,
                };
                if !is_lost {
                    let reply = [Frame::of_request(frame.request.get()).as_bytes(), &piece].concat();
                    socket.send_to(&reply, from).unwrap();
                }
            }
        }
    }

    /// The command at the beginning of `bytes`, and its length.
    fn parse(&self, bytes: &[u8]) -> Option<(Asked, usize)> {
        if self.is_resp {
            let (resp::Token::Array(count), mut len) = resp::token(bytes, VALUE_LEN_MAX).unwrap()? else {
                panic!("no command")
            };
            let mut words = Vec::new();
            for _ in 0..count {
                let (resp::Token::Bulk(word), word_len) =
                    resp::token(&bytes[len..], VALUE_LEN_MAX).unwrap()?
                else {
                    panic!("no word")
                };
                words.push(word.to_vec());
                len += word_len;
            }
            let asked = match (&words[0][..], count) {
                (b"GET", 2) => Asked::Get(words.split_off(1)),
                (b"MGET", 2..) => Asked::MultiGet(words.split_off(1)),
                (b"SET", 3) => Asked::Put(words[1].clone(), words[2].clone()),
                _ => panic!("no such command"),
            };
            return Some((asked, len));
        }
        let text = line(bytes, 64 << 10).unwrap()?;
        let len = text.len() + 2;
        let words: Vec<_> = text.split(|&byte| byte == b' ').map(<[u8]>::to_vec).collect();
        match &words[..] {
            [command, keys @ ..] if command == b"get" => Some((Asked::MultiGet(keys.to_vec()), len)),
            [command, key, _, _, value_len] if command == b"set" => {
                let value_len = number(value_len).unwrap();
                let value = bytes.get(len..len + value_len + 2)?.strip_suffix(b"\r\n").unwrap();
                Some((Asked::Put(key.clone(), value.to_vec()), len + value_len + 2))
            }
            _ => panic!("no such command"),
        }
    }

    /// The pieces of an answer, each of which may be a datagram.
    fn answer(&self, asked: Asked) -> Vec<Vec<u8>> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let get = |key: &[u8]| {
            let mut value = values.get(key).cloned()?;
            match self.fault {
                Fault::Forgets if key == b"0" => return None,
                Fault::Damages if key == b"0" => value[9] ^= 1,
                _ => {}
            }
            Some(value)
        };
        let bulk = |value: Option<Vec<u8>>| match value {
            None => b"$-1\r\n".to_vec(),
            Some(value) => {
                let mut out = Vec::new();
                resp::push_bulk(&mut out, &value);
                out
            }
        };
        match asked {
            Asked::Get(keys) => vec![bulk(get(&keys[0]))],
            Asked::MultiGet(keys) if self.is_resp => {
                let head = format!("*{}\r\n", keys.len()).into_bytes();
                [head].into_iter().chain(keys.iter().map(|key| bulk(get(key)))).collect()
            }
            Asked::MultiGet(keys) => {
                let value = |key: &Vec<u8>| {
                    let value = get(key)?;
                    let head = format!("VALUE {} 0 {}\r\n", String::from_utf8_lossy(key), value.len());
                    Some([head.as_bytes(), &value, b"\r\n"].concat())
                };
                let pieces: Vec<_> = keys.iter().filter_map(value).collect();
                pieces.into_iter().chain([b"END\r\n".to_vec()]).collect()
            }
            Asked::Put(key, value) => {
                values.insert(key, value);
                vec![if self.is_resp { b"+OK\r\n".to_vec() } else { b"STORED\r\n".to_vec() }]
            }
        }
    }
}
