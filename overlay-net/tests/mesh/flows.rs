//! Connections that are watched while something happens to them.

use super::hosts::{Host, in_namespace};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A TCP connection over which numbered blocks go as fast as they can, each checked on arrival.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    longest_gap_us: Arc<AtomicU64>,
    ends: Vec<JoinHandle<()>>,
}

const BLOCK_BYTES: usize = 16 << 10;

fn block(number: u64) -> Vec<u8> {
    let mut block = vec![number as u8; BLOCK_BYTES];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

impl Flow {
    /// From one host's mesh address to the other's.
    pub(crate) fn start(from: &Host, to: &Host, address: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicU64::new(0));
        let longest_gap_us = Arc::new(AtomicU64::new(0));
        let (ready, port) = std::sync::mpsc::channel();
        let (counted, gap) = (Arc::clone(&bytes), Arc::clone(&longest_gap_us));
        let server = in_namespace(&to.namespace, move || {
            let listener = TcpListener::bind(SocketAddr::new(address, 0)).unwrap();
            ready.send(listener.local_addr().unwrap().port()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; BLOCK_BYTES];
            let mut last = Instant::now();
            for number in 0.. {
                if stream.read_exact(&mut buffer).is_err() {
                    return;
                }
                assert_eq!(buffer, block(number), "block {number} is damaged");
                let waited = last.elapsed().as_micros() as u64;
                gap.fetch_max(waited, Ordering::Relaxed);
                last = Instant::now();
                counted.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
            }
        });
        let port = port.recv().unwrap();
        let stopped = Arc::clone(&stop);
        let client = in_namespace(&from.namespace, move || {
            let target = SocketAddr::new(address, port);
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(&block(number)).unwrap();
                number += 1;
            }
        });
        Self {
            stop,
            bytes,
            longest_gap_us,
            ends: vec![server, client],
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until so many bytes more have come.
    #[track_caller]
    pub(crate) fn advance(&self, bytes: u64) {
        let target = self.bytes() + bytes;
        super::hosts::eventually("the flow goes on", super::hosts::PATIENCE, || {
            self.bytes() >= target
        });
    }

    /// Forgets the pauses so far.
    pub(crate) fn forget_gaps(&self) {
        self.longest_gap_us.store(0, Ordering::Relaxed);
    }

    /// The longest pause between two blocks.
    pub(crate) fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.longest_gap_us.load(Ordering::Relaxed))
    }

    /// Ends it; every block arrived as it was sent.
    pub(crate) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(end) = self.ends.pop() {
            end.join().unwrap();
        }
    }
}
