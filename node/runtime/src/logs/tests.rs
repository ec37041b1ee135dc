//! Writer and reader against each other on a real directory.

use super::*;
use crate::LogConfig;
use proptest::prelude::*;
use shoal_model::Timestamp;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

fn config(path: &Path, max_size_bytes: Option<u64>, max_files: u32) -> LogConfig {
    LogConfig::JsonFile {
        path: path.to_owned(),
        max_size_bytes,
        max_files,
        attrs: BTreeMap::new(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn collect(path: &Path, options: LogOptions) -> Vec<LogEntry> {
    let (_ended, receiver) = watch::channel(false);
    let mut stream = read_logs(path, options, receiver).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = stream.next().await {
        entries.push(entry.unwrap());
    }
    entries
}

fn read(path: &Path, options: LogOptions) -> Vec<LogEntry> {
    runtime().block_on(collect(path, options))
}

fn texts(entries: &[LogEntry]) -> Vec<String> {
    entries
        .iter()
        .map(|e| String::from_utf8_lossy(&e.line).into_owned())
        .collect()
}

#[test]
fn a_record_is_dockers_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let LogConfig::JsonFile {
        path: p,
        max_size_bytes,
        max_files,
        ..
    } = config(&path, None, 1)
    else {
        panic!()
    };
    let attrs = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let config = LogConfig::JsonFile {
        path: p,
        max_size_bytes,
        max_files,
        attrs,
    };
    let mut writer = LogWriter::open(&config).unwrap();
    let time = Timestamp(1_700_000_000_120_000_000);
    writer.write(StreamKind::Stdout, b"a\t\"<\x01\xff\xe2\x82\xac\n", time);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "{\"log\":\"a\\u0009\\\"\\u003c\\u0001\\ufffd\u{20ac}\\n\",\"stream\":\"stdout\",\
         \"attrs\":{\"a\":\"b\"},\"time\":\"2023-11-14T22:13:20.12Z\"}\n"
    );
    assert_eq!(read(&path, LogOptions::default())[0].attrs["a"], "b");
}

#[test]
fn long_lines_are_cut_at_16_kib_and_keep_their_first_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&config(&path, None, 1)).unwrap();
    writer.write(
        StreamKind::Stdout,
        &vec![b'x'; PARTIAL_LINE_BYTES + 5],
        Timestamp(1),
    );
    writer.write(StreamKind::Stderr, b"between\n", Timestamp(2));
    writer.write(StreamKind::Stdout, b"y\nz", Timestamp(3));
    writer.end(StreamKind::Stdout, Timestamp(4));
    let entries = read(&path, LogOptions::default());
    let shape: Vec<_> = entries.iter().map(|e| (e.line.len(), e.time.0)).collect();
    assert_eq!(shape, [(PARTIAL_LINE_BYTES, 1), (8, 2), (7, 1), (1, 4)]);
}

#[test]
fn rotation_keeps_the_newest_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&config(&path, Some(300), 3)).unwrap();
    for n in 0..100 {
        writer.write(
            StreamKind::Stdout,
            format!("line {n}\n").as_bytes(),
            Timestamp(n),
        );
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    let lines = texts(&read(&path, LogOptions::default()));
    assert_eq!(lines.last().unwrap(), "line 99\n");
    let first: usize = lines[0]
        .trim()
        .strip_prefix("line ")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(lines.len(), 100 - first);
    for file in names {
        assert!(std::fs::metadata(dir.path().join(file)).unwrap().len() < 300 + 100);
    }
}

#[test]
fn tail_since_until_and_streams_filter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&config(&path, Some(200), 10)).unwrap();
    for n in 0..20 {
        let stream = if n % 2 == 0 {
            StreamKind::Stdout
        } else {
            StreamKind::Stderr
        };
        writer.write(stream, format!("{n}\n").as_bytes(), Timestamp(n));
    }
    let check = |options: LogOptions, expected: std::ops::Range<i64>, step: usize| {
        let expected: Vec<_> = expected.step_by(step).map(|n| format!("{n}\n")).collect();
        assert_eq!(texts(&read(&path, options)), expected);
    };
    let all = LogOptions::default;
    check(all(), 0..20, 1);
    check(
        LogOptions {
            tail: Some(7),
            ..all()
        },
        13..20,
        1,
    );
    check(
        LogOptions {
            tail: Some(0),
            ..all()
        },
        0..0,
        1,
    );
    check(
        LogOptions {
            tail: Some(500),
            ..all()
        },
        0..20,
        1,
    );
    check(
        LogOptions {
            since: Some(Timestamp(5)),
            until: Some(Timestamp(9)),
            ..all()
        },
        5..10,
        1,
    );
    check(
        LogOptions {
            stderr: false,
            ..all()
        },
        0..20,
        2,
    );
    check(
        LogOptions {
            stdout: false,
            tail: Some(4),
            ..all()
        },
        17..20,
        2,
    );
}

#[test]
fn torn_and_damaged_records_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "{\"log\":\"a\\n\",\"str").unwrap();
    let mut writer = LogWriter::open(&config(&path, None, 1)).unwrap();
    writer.write(StreamKind::Stdout, b"b\n", Timestamp(1));
    assert_eq!(texts(&read(&path, LogOptions::default())), ["b\n"]);
    assert_eq!(writer.lost_bytes(), 0);
}

#[test]
fn a_missing_log_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(&dir.path().join("none"), LogOptions::default()).is_empty());
}

#[test]
fn following_sees_everything_across_rotations_and_ends_with_the_container() {
    const LINES: i64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    runtime().block_on(async {
        let (ended, receiver) = watch::channel(false);
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut stream = read_logs(&path, options, receiver).unwrap();
        let writer_path = path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = LogWriter::open(&config(&writer_path, Some(4096), 1000)).unwrap();
            for n in 0..LINES {
                writer.write(
                    StreamKind::Stdout,
                    format!("{n}\n").as_bytes(),
                    Timestamp(n),
                );
            }
        });
        let mut seen = 0;
        while seen < LINES {
            let entry = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
            let entry = entry.unwrap_or_else(|_| panic!("nothing after line {seen}"));
            assert_eq!(entry.unwrap().unwrap().time, Timestamp(seen));
            seen += 1;
        }
        writing.await.unwrap();
        ended.send(true).unwrap();
        let end = tokio::time::timeout(Duration::from_secs(20), stream.next())
            .await
            .unwrap();
        assert!(end.is_none());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_is_read(
        chunks in proptest::collection::vec(("[a-z<\\n\\t\"é]{0,40}", any::<bool>()), 0..60),
        max_size in 100u64..2000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = LogWriter::open(&config(&path, Some(max_size), 900)).unwrap();
        let mut expected = [String::new(), String::new()];
        for (at, (text, out)) in chunks.iter().enumerate() {
            let stream = if *out { StreamKind::Stdout } else { StreamKind::Stderr };
            writer.write(stream, text.as_bytes(), Timestamp(at as i64));
            expected[usize::from(!out)].push_str(text);
        }
        writer.end(StreamKind::Stdout, Timestamp(1 << 40));
        writer.end(StreamKind::Stderr, Timestamp(1 << 40));
        let mut found = [String::new(), String::new()];
        for entry in read(&path, LogOptions::default()) {
            let stream = usize::from(entry.stream == StreamKind::Stderr);
            found[stream].push_str(std::str::from_utf8(&entry.line).unwrap());
        }
        prop_assert_eq!(found, expected);
    }
}
