//! What the parser takes, and what it refuses and how it says so.

use crate::ebml::{EbmlFault, put_binary, put_float, put_master, put_size, put_text, put_uint, put_unknown};
use crate::matroska::{
    Event, FRAME_BYTES_MAX, Fault, MASTER_BYTES_MAX, Parser, TAGS_MAX, TRACKS_BYTES_MAX, cluster, head, ids, tags,
    write_fragment,
};
use crate::media::{Codec, Kind, MS, Tracks};
use crate::testing::{SAMPLE, audio_track, fragment, frames, parse, tracks, video_track};

/// A Segment with these elements after the EBML header and before any Tracks.
fn segment(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![];
    put_master(&mut out, ids::EBML, |out| put_text(out, ids::DOC_TYPE, "webm"));
    put_unknown(&mut out, ids::SEGMENT);
    fill(&mut out);
    out
}

fn put_entry(out: &mut Vec<u8>, number: u64, more: impl FnOnce(&mut Vec<u8>)) {
    put_master(out, ids::TRACK_ENTRY, |out| {
        put_uint(out, ids::TRACK_NUMBER, number);
        put_uint(out, ids::TRACK_TYPE, 1);
        put_text(out, ids::CODEC_ID, "V_MJPEG");
        more(out);
    });
}

/// A Cluster of unknown size with one frame a time.
fn put_open_cluster(out: &mut Vec<u8>, ticks: u64, times: &[i16]) {
    put_unknown(out, ids::CLUSTER);
    put_uint(out, ids::TIMESTAMP, ticks);
    for time in times {
        let [high, low] = time.to_be_bytes();
        put_binary(out, ids::SIMPLE_BLOCK, &[0x81, high, low, 0x80, 7]);
    }
}

fn fault(input: &[u8]) -> Fault {
    parse(input).1.unwrap_err().fault
}

fn times_ms(events: &[Event]) -> Vec<i64> {
    frames(events).iter().map(|frame| frame.pts_ns / MS).collect()
}

#[test]
fn the_samples_tracks_are_as_ffmpeg_wrote_them() {
    let (events, result) = parse(SAMPLE);
    result.unwrap();
    let Event::Tracks(tracks) = &events[0] else { panic!("{:?}", events[0]) };
    let (video, audio) = (tracks.video().unwrap(), tracks.audio().unwrap());
    assert_eq!((&video.codec, video.width, video.height, video.kind), (&Codec::H264, 64, 48, Kind::Video));
    assert_eq!(video.private[0], 1, "avcC's version");
    assert_eq!(video.default_duration_ns, 100_000_000);
    assert_eq!((&audio.codec, audio.sample_rate, audio.channels), (&Codec::Aac, 16_000, 1));
    let starts = events.iter().filter(|event| matches!(event, Event::ClusterStart { .. })).count();
    assert_eq!(starts, events.iter().filter(|event| matches!(event, Event::ClusterEnd)).count());
}

#[test]
fn a_cluster_of_unknown_size_ends_at_the_next_one() {
    let input = segment(|out| {
        put_master(out, ids::TRACKS, |out| put_entry(out, 1, |_| {}));
        put_open_cluster(out, 1000, &[0, -40]);
        put_binary(out, ids::VOID, &[0; 9]);
        put_binary(out, 0x4D42, &[0; 9]);
        put_open_cluster(out, 2000, &[0]);
    });
    let (events, result) = parse(&input);
    result.unwrap();
    assert_eq!(times_ms(&events), [1000, 960, 2000]);
    let kinds: Vec<bool> = events[1..].iter().map(|event| matches!(event, Event::Frame(_))).collect();
    assert_eq!(kinds, [false, true, true, false, false, true, false]);
    assert_eq!(events.last(), Some(&Event::ClusterEnd));
}

#[test]
fn a_tick_is_what_info_says() {
    let input = segment(|out| {
        put_master(out, ids::INFO, |out| put_uint(out, ids::TIMESTAMP_SCALE, 100_000));
        put_master(out, ids::TRACKS, |out| put_entry(out, 1, |_| {}));
        put_open_cluster(out, 10_000, &[5]);
    });
    assert_eq!(frames(&parse(&input).0)[0].pts_ns, 1_000_500_000);
    let zero = segment(|out| put_master(out, ids::INFO, |out| put_uint(out, ids::TIMESTAMP_SCALE, 0)));
    assert_eq!(fault(&zero), Fault::NoScale);
}

#[test]
fn times_beyond_all_clocks_saturate() {
    let input = segment(|out| {
        put_master(out, ids::INFO, |out| put_uint(out, ids::TIMESTAMP_SCALE, u64::MAX));
        put_master(out, ids::TRACKS, |out| put_entry(out, 1, |_| {}));
        put_open_cluster(out, u64::MAX, &[i16::MAX, i16::MIN]);
    });
    let (events, result) = parse(&input);
    result.unwrap();
    assert_eq!(frames(&events)[0].pts_ns, i64::MAX);
}

#[test]
fn another_header_or_segment_is_a_new_segment_once() {
    let one = write_fragment(&fragment(0, 2), 0);
    let header_bytes = one.windows(4).position(|bytes| bytes == [0x18, 0x53, 0x80, 0x67]).unwrap();
    for (second, what) in [(&one[..], "with a header"), (&one[header_bytes..], "without")] {
        let (events, result) = parse(&[&one, second].concat());
        result.unwrap();
        assert_eq!(events.iter().filter(|event| **event == Event::NewSegment).count(), 1, "{what}");
        let half = events.len() / 2;
        assert_eq!(events[half], Event::NewSegment, "{what}");
        assert_eq!(events[..half], events[half + 1..], "{what}");
    }
}

#[test]
fn a_segment_of_known_size_ends_there() {
    let mut inner = vec![];
    put_master(&mut inner, ids::TRACKS, |out| put_entry(out, 1, |_| {}));
    put_open_cluster(&mut inner, 0, &[0]);
    let mut input = vec![];
    put_master(&mut input, ids::EBML, |_| {});
    put_binary(&mut input, ids::SEGMENT, &inner);
    let once = parse(&input);
    once.1.unwrap();
    assert_eq!(once.0.last(), Some(&Event::ClusterEnd));
    let (events, result) = parse(&input.repeat(2));
    result.unwrap();
    assert_eq!(events.len(), once.0.len() * 2 + 1);
    input.pop();
    assert_eq!(fault(&input), Fault::Truncated);
}

#[test]
fn what_is_no_matroska_is_refused_at_its_first_bytes() {
    for input in [&b"GET / HTTP/1.1\r\n"[..], b"\0\0\0\x20ftypisom", b"RIFF....AVI LIST", &SAMPLE[60..]] {
        let error = parse(input).1.unwrap_err();
        assert_eq!((error.at, error.fault), (0, Fault::NotMatroska), "{input:?}");
    }
    let mut other = vec![];
    put_master(&mut other, ids::EBML, |out| put_text(out, ids::DOC_TYPE, "mkv3d"));
    assert!(parse(&other).1.unwrap_err().to_string().contains("mkv3d"));
    let mut newer = vec![];
    put_master(&mut newer, ids::EBML, |out| put_uint(out, ids::DOC_TYPE_READ_VERSION, 5));
    assert!(matches!(fault(&newer), Fault::Header(_)));
    assert_eq!(fault(&[]), Fault::Truncated);
}

#[test]
fn lengths_that_lie_are_refused_before_memory_is_taken() {
    let with_size = |id: u32, size: u64| {
        segment(|out| {
            put_master(out, ids::TRACKS, |out| put_entry(out, 1, |_| {}));
            if matches!(id, ids::SIMPLE_BLOCK | ids::BLOCK_GROUP) {
                put_open_cluster(out, 0, &[]);
            }
            crate::ebml::put_id(out, id);
            put_size(out, size);
        })
    };
    for (id, most) in [
        (ids::SIMPLE_BLOCK, FRAME_BYTES_MAX + 1024),
        (ids::BLOCK_GROUP, FRAME_BYTES_MAX + 1024),
        (ids::TRACKS, TRACKS_BYTES_MAX),
        (ids::INFO, MASTER_BYTES_MAX),
        (ids::TAGS, MASTER_BYTES_MAX),
    ] {
        let mut parser = Parser::new();
        let mut events = vec![];
        parser.push(&with_size(id, most as u64), &mut events).unwrap();
        parser.push(&[0; 10], &mut events).unwrap();
        assert!(parser.held_bytes() <= 1 << 20, "{id:#X}");
        for bytes in [most as u64 + 1, (1 << 56) - 2] {
            assert_eq!(fault(&with_size(id, bytes)), Fault::TooLarge { id, bytes, bytes_max: most });
        }
    }
}

#[test]
fn a_child_longer_than_its_cluster_is_refused_at_its_begin() {
    let mut input = head(&tracks());
    put_master(&mut input, ids::CLUSTER, |out| {
        put_uint(out, ids::TIMESTAMP, 0);
        crate::ebml::put_id(out, ids::SIMPLE_BLOCK);
        put_size(out, 100);
    });
    let at = input.len() as u64 - 2;
    let error = parse(&input).1.unwrap_err();
    assert_eq!((error.at, error.fault), (at, EbmlFault::Overruns(ids::SIMPLE_BLOCK).into()));
}

#[test]
fn what_nobody_reads_passes_by_whatever_its_size() {
    let mut parser = Parser::new();
    let mut events = vec![];
    let mut input = segment(|out| {
        put_binary(out, ids::CUES, &[1; 300]);
        put_binary(out, ids::CRC_32, &[1; 4]);
        crate::ebml::put_id(out, ids::ATTACHMENTS);
        put_size(out, 1 << 50);
    });
    parser.push(&input, &mut events).unwrap();
    for _ in 0..100 {
        parser.push(&[0xA5; 100_000], &mut events).unwrap();
        assert_eq!(parser.held_bytes(), 0);
    }
    assert_eq!(parser.bytes(), input.len() as u64 + 10_000_000);
    assert_eq!(parser.finish(&mut events).unwrap_err().fault, Fault::Truncated);
    input = segment(|out| put_unknown(out, ids::CUES));
    assert_eq!(fault(&input), EbmlFault::UnknownSize(ids::CUES).into());
}

#[test]
fn tracks_are_bounded_and_distinct() {
    let entries = |numbers: &[u64]| {
        segment(|out| put_master(out, ids::TRACKS, |out| numbers.iter().for_each(|n| put_entry(out, *n, |_| {}))))
    };
    assert!(parse(&entries(&[1, 2, 127])).1.is_ok());
    assert_eq!(fault(&entries(&[1, 2, 3, 4])), Fault::TooManyTracks);
    assert_eq!(fault(&entries(&[1, 1])), Fault::TrackNumber(1));
    for number in [0, 128, u64::MAX] {
        assert_eq!(fault(&entries(&[number])), Fault::TrackNumber(number));
    }
    let private = |bytes: usize| {
        let body = vec![1; bytes];
        segment(|out| {
            put_master(out, ids::TRACKS, |out| put_entry(out, 1, |out| put_binary(out, ids::CODEC_PRIVATE, &body)))
        })
    };
    assert!(parse(&private(64 << 10)).1.is_ok());
    assert!(matches!(fault(&private((64 << 10) + 1)), Fault::TooLarge { id: ids::CODEC_PRIVATE, .. }));
    let unnamed = segment(|out| {
        put_master(out, ids::TRACKS, |out| {
            put_master(out, ids::TRACK_ENTRY, |out| put_uint(out, ids::TRACK_NUMBER, 3));
        });
    });
    assert_eq!(fault(&unnamed), Fault::NoCodec(3));
}

#[test]
fn a_block_of_a_track_nobody_announced_is_refused() {
    let mut alone = fragment(0, 2);
    alone.tracks = std::sync::Arc::new(Tracks(vec![video_track()]));
    assert_eq!(fault(&write_fragment(&alone, 0)), Fault::UnknownTrack(2));
    let before = segment(|out| put_open_cluster(out, 0, &[0]));
    assert_eq!(fault(&before), Fault::UnknownTrack(1));
}

#[test]
fn a_block_needs_its_clusters_time_and_its_own_header() {
    let with = |fill: fn(&mut Vec<u8>)| {
        let mut input = head(&tracks());
        put_master(&mut input, ids::CLUSTER, fill);
        fault(&input)
    };
    assert_eq!(with(|out| put_binary(out, ids::SIMPLE_BLOCK, &[0x81, 0, 0, 0, 7])), Fault::UntimedBlock);
    let short = |out: &mut Vec<u8>| {
        put_uint(out, ids::TIMESTAMP, 0);
        put_binary(out, ids::SIMPLE_BLOCK, &[0x81, 0, 0]);
    };
    assert_eq!(with(short), Fault::ShortBlock);
}

#[test]
fn header_stripping_is_undone_and_other_encodings_are_refused_by_name() {
    let encoded = |algo: u64, kind: u64| {
        segment(|out| {
            put_master(out, ids::TRACKS, |out| {
                put_entry(out, 1, |out| {
                    put_master(out, ids::CONTENT_ENCODINGS, |out| {
                        put_master(out, ids::CONTENT_ENCODING, |out| {
                            put_uint(out, ids::CONTENT_ENCODING_TYPE, kind);
                            put_master(out, ids::CONTENT_COMPRESSION, |out| {
                                put_uint(out, ids::CONTENT_COMP_ALGO, algo);
                                put_binary(out, ids::CONTENT_COMP_SETTINGS, &[0xFF, 0xD8]);
                            });
                        });
                    });
                });
            });
            put_open_cluster(out, 0, &[0]);
        })
    };
    let (events, result) = parse(&encoded(3, 0));
    result.unwrap();
    assert_eq!(frames(&events)[0].data[..], [0xFF, 0xD8, 7]);
    for (algo, kind, encoding) in [(0, 0, "zlib"), (1, 0, "bzlib"), (2, 0, "lzo1x"), (3, 1, "encryption")] {
        assert_eq!(fault(&encoded(algo, kind)), Fault::Encoding { number: 1, encoding });
    }
}

#[test]
fn tags_of_the_stream_are_read_and_bounded() {
    let list: Vec<(String, String)> = (0..TAGS_MAX + 3).map(|index| (format!("name{index}"), "v".into())).collect();
    let mut parser = Parser::new();
    let mut events = vec![];
    parser.push(&[head(&tracks()), tags(&list)].concat(), &mut events).unwrap();
    assert_eq!(events.last(), Some(&Event::Tags(list[..TAGS_MAX].to_vec())));
    assert_eq!(parser.tags_dropped(), 3);
    let long = [("n".repeat(129), String::new()), ("n".into(), "v".repeat(257)), ("ok".into(), "v".repeat(256))];
    parser.push(&tags(&long), &mut events).unwrap();
    assert_eq!(events.last(), Some(&Event::Tags(long[2..].to_vec())));
    assert_eq!(parser.tags_dropped(), 5);
}

#[test]
fn tags_of_a_track_and_binary_tags_are_not_the_streams() {
    let input = segment(|out| {
        put_master(out, ids::TAGS, |out| {
            for (uid, name) in [(7, "DURATION"), (0, "place")] {
                put_master(out, ids::TAG, |out| {
                    put_master(out, ids::SIMPLE_TAG, |out| {
                        put_text(out, ids::TAG_NAME, name);
                        put_text(out, ids::TAG_STRING, "x");
                    });
                    put_master(out, ids::SIMPLE_TAG, |out| put_text(out, ids::TAG_NAME, "binary"));
                    put_master(out, ids::TARGETS, |out| put_uint(out, ids::TAG_TRACK_UID, uid));
                });
            }
        });
    });
    assert_eq!(parse(&input).0, [Event::Tags(vec![("place".into(), "x".into())])]);
}

#[test]
fn odd_numbers_of_a_track_are_taken_as_far_as_they_make_sense() {
    let with_rate = |rate: f64| {
        let input = segment(|out| {
            put_master(out, ids::TRACKS, |out| {
                put_entry(out, 1, |out| {
                    put_master(out, ids::AUDIO, |out| {
                        put_float(out, ids::SAMPLING_FREQUENCY, rate);
                        put_uint(out, ids::CHANNELS, 300);
                    })
                });
            });
        });
        let Event::Tracks(tracks) = parse(&input).0.remove(0) else { panic!("no tracks") };
        (tracks.0[0].sample_rate, tracks.0[0].channels)
    };
    assert_eq!(with_rate(44_100.4), (44_100, 255));
    assert_eq!(with_rate(f64::NAN).0, 0);
    assert_eq!(with_rate(f64::INFINITY).0, u32::MAX);
    assert_eq!(with_rate(-1.0).0, 0);
}

#[test]
fn a_frame_is_a_keyframe_in_a_group_that_refers_to_nothing() {
    let grouped = |references: usize| {
        let mut input = head(&Tracks(vec![audio_track()]));
        put_master(&mut input, ids::CLUSTER, |out| {
            put_uint(out, ids::TIMESTAMP, 5);
            put_master(out, ids::BLOCK_GROUP, |out| {
                put_binary(out, 0x75A1, &[0; 5000]);
                put_binary(out, ids::BLOCK, &[0x82, 0, 1, 0, 9]);
                (0..references).for_each(|_| put_binary(out, ids::REFERENCE_BLOCK, &[0xFF]));
            });
        });
        frames(&parse(&input).0).remove(0)
    };
    assert!(grouped(0).keyframe && !grouped(1).keyframe && !grouped(2).keyframe);
    assert_eq!((grouped(0).pts_ns, grouped(0).duration_ns, &grouped(0).data[..]), (6 * MS, None, &[9][..]));
}

#[test]
fn a_cluster_alone_goes_on_where_the_head_left_off() {
    let one = fragment(0, 3);
    let (events, _) = parse(&[head(&one.tracks), cluster(&one, 0), cluster(&one, 120 * MS)].concat());
    assert_eq!(frames(&events).len(), 12);
    assert!(!events.contains(&Event::NewSegment));
}
