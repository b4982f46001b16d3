//! A line with faults, on a clock that the test turns.

use _core::impair::{ALWAYS, BYTES_MOST, Distribution, Line, Settings, Taken, WORDS};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn line(settings: Settings) -> Line {
    Line::new(Settings { seed: settings.seed.or(Some(1)), ..settings }, 0, 0)
}

fn percent(part: f64) -> u64 {
    (part / 100.0 * ALWAYS as f64) as u64
}

/// Frame n as it is sent: two addresses, its number, and a filling.
fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(number.to_be_bytes());
    frame.resize(len.max(20), 0x55);
    frame
}

fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[12..20].try_into().unwrap())
}

/// Send `count` frames, one each `gap_ns`; what came out, with its time.
fn send(line: &mut Line, count: u64, gap_ns: u64, len: usize) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    for index in 0..count {
        let now_ns = S + index * gap_ns;
        collect(line, now_ns, &mut out);
        line.put(now_ns, [&frame(index, len), &[], &[]], 0);
    }
    collect(line, u64::MAX, &mut out);
    assert!(line.is_empty());
    out
}

/// Take what is due at its very time.
fn collect(line: &mut Line, until_ns: u64, out: &mut Vec<(u64, Vec<u8>)>) {
    while let Some(due_ns) = line.due_ns().filter(|due_ns| *due_ns <= until_ns) {
        assert!(due_ns == 0 || line.pop(due_ns - 1).is_none());
        out.push((due_ns, line.pop(due_ns).unwrap().into_vec()));
    }
}

/// Delays of the frames that came out, in ns.
fn delays(out: &[(u64, Vec<u8>)], gap_ns: u64) -> Vec<f64> {
    out.iter().map(|(at, frame)| (at - (S + number(frame) * gap_ns)) as f64).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let middle = mean(values);
    (values.iter().map(|value| (value - middle).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

fn settings() -> impl Strategy<Value = Settings> {
    let part = || prop_oneof![Just(0), 0..=ALWAYS, 0..ALWAYS / 50];
    let times = (0..50 * MS, 0..50 * MS, 0..3usize);
    let parts = (part(), 0..20u64, part(), part(), part());
    let rates = (prop_oneof![Just(0), 8_000..1_000_000_000u64], 0..100_000u64, 0..50u64, 0..100_000u64);
    (times, parts, rates, any::<u64>()).prop_map(|(times, parts, rates, seed)| Settings {
        delay_ns: times.0,
        jitter_ns: times.1,
        distribution: [Distribution::Uniform, Distribution::Normal, Distribution::Pareto][times.2],
        loss: parts.0,
        loss_burst: parts.1,
        duplicate: parts.2,
        reorder: parts.3,
        corrupt: parts.4,
        rate_bps: rates.0,
        rate_burst: rates.1,
        queue_frames: rates.2,
        queue_bytes: rates.3,
        seed: Some(seed),
    })
}

proptest! {
    #[test]
    fn two_runs_with_one_seed_are_equal_frame_by_frame(
        settings in settings(), frames in prop::collection::vec((0..3 * MS, 20..1515usize), 1..300)
    ) {
        let run = || {
            let (mut line, mut now_ns, mut out, mut taken) = (line(settings), S, Vec::new(), Vec::new());
            for (index, (gap_ns, len)) in frames.iter().enumerate() {
                now_ns += gap_ns;
                collect(&mut line, now_ns, &mut out);
                taken.push(line.put(now_ns, [&frame(index as u64, *len), &[], &[]], 0));
            }
            collect(&mut line, u64::MAX, &mut out);
            (taken, out)
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn every_frame_that_was_taken_comes_out_once_a_copy_and_at_its_time(
        settings in settings(), frames in prop::collection::vec((0..3 * MS, 20..1515usize), 1..300)
    ) {
        let (mut line, mut now_ns, mut copies) = (line(settings), S, 0);
        let mut out = Vec::new();
        for (index, (gap_ns, len)) in frames.iter().enumerate() {
            now_ns += gap_ns;
            if let Taken::Copies(more) = line.put(now_ns, [&frame(index as u64, *len), &[], &[]], 0) {
                copies += more;
            }
            prop_assert_eq!(line.len() as u64 + out.len() as u64, copies);
            collect(&mut line, now_ns, &mut out);
        }
        collect(&mut line, u64::MAX, &mut out);
        prop_assert_eq!(out.len() as u64, copies);
        prop_assert!(out.is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn whatever_the_words_in_shared_memory_are_the_line_works(words in any::<[u64; WORDS]>(), lens in prop::collection::vec(0..3000usize, 0..50)) {
        let mut line = line(Settings::read(&words));
        for len in lens {
            line.put(S, [&vec![0; len], &[], &[]], 0);
        }
        while line.pop(u64::MAX).is_some() {}
        prop_assert!(line.is_empty());
    }

    #[test]
    fn settings_come_back_from_shared_memory_as_they_were(settings in settings()) {
        prop_assert_eq!(Settings::read(&settings.words()), settings);
    }
}

#[test]
fn what_happens_to_a_frame_does_not_depend_on_when_it_comes() {
    let faulty = Settings { loss: percent(10.0), loss_burst: 3, corrupt: percent(10.0), duplicate: percent(5.0), ..Settings::default() };
    let came = |gap_ns| send(&mut line(faulty), 5000, gap_ns, 200).into_iter().map(|(_, frame)| frame).collect::<Vec<_>>();
    assert_eq!(came(1), came(7 * MS));
    let other = Settings { seed: Some(2), ..faulty };
    assert_ne!(came(1), send(&mut line(other), 5000, 1, 200).into_iter().map(|(_, frame)| frame).collect::<Vec<_>>());
}

#[test]
fn a_delay_is_exact_and_jitter_has_the_spread_that_was_asked_for() {
    let plain = Settings { delay_ns: 10 * MS, ..Settings::default() };
    assert!(delays(&send(&mut line(plain), 1000, MS, 60), MS).iter().all(|delay| *delay == 10e6));
    // So far apart that no frame has to wait for the one before.
    let jittery = |distribution| Settings { delay_ns: 30 * MS, jitter_ns: 10 * MS, distribution, ..Settings::default() };
    let uniform = delays(&send(&mut line(jittery(Distribution::Uniform)), 50_000, S, 60), S);
    assert!((mean(&uniform) / 30e6 - 1.0).abs() < 0.01, "{}", mean(&uniform));
    assert!((deviation(&uniform) / (10e6 / 3f64.sqrt()) - 1.0).abs() < 0.02, "{}", deviation(&uniform));
    assert!(uniform.iter().all(|delay| (20e6..=40e6).contains(delay)));
    let normal = delays(&send(&mut line(jittery(Distribution::Normal)), 50_000, S, 60), S);
    assert!((mean(&normal) / 30e6 - 1.0).abs() < 0.01 && (deviation(&normal) / 10e6 - 1.0).abs() < 0.02, "{}", deviation(&normal));
    // The fourth moment of this one does not exist: its quantiles say more. Median: scale * 2^(1/3).
    let mut pareto = delays(&send(&mut line(jittery(Distribution::Pareto)), 50_000, S, 60), S);
    pareto.sort_by(f64::total_cmp);
    let scale = 10e6 / 0.75f64.sqrt();
    let at = |quantile: f64| 30e6 + scale * ((1.0 - quantile).powf(-1.0 / 3.0) - 1.5);
    for quantile in [0.1, 0.5, 0.9, 0.99] {
        let found = pareto[(quantile * pareto.len() as f64) as usize];
        assert!((found / at(quantile) - 1.0).abs() < 0.03, "{quantile}: {found} is not {}", at(quantile));
    }
}

#[test]
fn jitter_keeps_the_order_and_reorder_changes_it() {
    let jittery = Settings { delay_ns: 20 * MS, jitter_ns: 20 * MS, ..Settings::default() };
    let numbers = |settings| send(&mut line(settings), 5000, MS / 10, 60).iter().map(|(_, frame)| number(frame)).collect::<Vec<_>>();
    assert!(numbers(jittery).is_sorted());
    let overtaking = numbers(Settings { delay_ns: 20 * MS, reorder: percent(10.0), ..Settings::default() });
    let early = overtaking.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(early > 200, "{early}");
}

#[test]
fn losses_are_as_many_as_asked_for_and_as_long_in_a_row() {
    let count = 200_000;
    let runs = |settings| {
        let numbers: Vec<u64> = send(&mut line(settings), count, 1, 60).iter().map(|(_, frame)| number(frame)).collect();
        let gaps: Vec<u64> = numbers.windows(2).map(|pair| pair[1] - pair[0] - 1).filter(|gap| *gap != 0).collect();
        let lost = 1.0 - numbers.len() as f64 / count as f64;
        (lost, gaps.iter().sum::<u64>() as f64 / gaps.len() as f64)
    };
    // Six standard deviations of 2000 losses among 200,000 frames are 13 %; with a fixed seed it is this or never.
    let (lost, row) = runs(Settings { loss: percent(5.0), ..Settings::default() });
    assert!((lost / 0.05 - 1.0).abs() < 0.02 && (row / (1.0 / 0.95) - 1.0).abs() < 0.02, "{lost} {row}");
    let (lost, row) = runs(Settings { loss: percent(5.0), loss_burst: 8, ..Settings::default() });
    assert!((lost / 0.05 - 1.0).abs() < 0.1 && (row / 8.0 - 1.0).abs() < 0.05, "{lost} {row}");
    assert_eq!(send(&mut line(Settings { loss: ALWAYS, ..Settings::default() }), 100, 1, 60), []);
}

#[test]
fn a_rate_is_kept_to_the_bit_and_its_burst_goes_at_once() {
    for (rate_bps, len) in [(1_000_000, 1514), (10_000_000_000, 60), (33_333_333, 777)] {
        let out = send(&mut line(Settings { rate_bps, ..Settings::default() }), 10_000, 0, len);
        let took_s = (out[out.len() - 1].0 - S) as f64 / S as f64;
        let bits = 10_000.0 * len as f64 * 8.0;
        assert!((bits / took_s / rate_bps as f64 - 1.0).abs() < 1e-6, "{rate_bps}: {}", bits / took_s);
    }
    let bursty = Settings { rate_bps: 8_000_000, rate_burst: 10_000, ..Settings::default() };
    let out = send(&mut line(bursty), 20, 0, 1000);
    assert_eq!(out.iter().filter(|(at, _)| *at == S).count(), 10);
    assert_eq!(out[19].0, S + 10 * MS);
}

#[test]
fn a_full_queue_refuses_frames_and_forgets_those_that_have_gone() {
    let put = |line: &mut Line, now_ns| line.put(now_ns, [&frame(0, 1000), &[], &[]], 0);
    let mut frames = line(Settings { rate_bps: 8_000_000, queue_frames: 3, ..Settings::default() });
    assert_eq!((0..5).map(|_| put(&mut frames, S)).filter(|taken| *taken == Taken::Refused).count(), 2);
    assert_eq!((put(&mut frames, S + MS), put(&mut frames, S + MS)), (Taken::Copies(1), Taken::Refused));
    let mut bytes = line(Settings { rate_bps: 8_000_000, queue_bytes: 2500, ..Settings::default() });
    assert_eq!((0..5).map(|_| put(&mut bytes, S)).filter(|taken| *taken == Taken::Refused).count(), 3);
    // What is longer than the queue may wait in it alone.
    let mut short = line(Settings { rate_bps: 8_000_000, queue_bytes: 10, ..Settings::default() });
    assert_eq!((put(&mut short, S), put(&mut short, S), put(&mut short, S + MS)), (Taken::Copies(1), Taken::Refused, Taken::Copies(1)));
}

#[test]
fn a_line_without_a_queue_of_its_own_holds_64_mib() {
    let mut line = line(Settings { delay_ns: S, ..Settings::default() });
    let frame = vec![0; 1 << 16];
    let taken = (0..2000).take_while(|_| line.put(S, [&frame, &[], &[]], 0) == Taken::Copies(1)).count();
    assert_eq!(taken, BYTES_MOST >> 16);
    assert_eq!((line.clear(), line.len()), (taken, 0));
    assert_eq!(line.put(S, [&frame, &[], &[]], 0), Taken::Copies(1));
}

#[test]
fn damage_is_one_bit_behind_the_addresses() {
    let out = send(&mut line(Settings { corrupt: ALWAYS, ..Settings::default() }), 2000, 1, 100);
    let places: std::collections::HashSet<u32> = out
        .iter()
        .enumerate()
        .map(|(index, (_, got))| {
            let wrong: Vec<(usize, u8)> = got.iter().zip(frame(index as u64, 100)).map(|(got, sent)| got ^ sent).enumerate().collect();
            assert_eq!(wrong.iter().map(|(_, bits)| bits.count_ones()).sum::<u32>(), 1);
            let (at, bits) = wrong.into_iter().find(|(_, bits)| *bits != 0).unwrap();
            assert!(at >= 12);
            8 * at as u32 + bits.trailing_zeros()
        })
        .collect();
    assert!(places.len() > 600, "of 704 places: {}", places.len());
}
