//! Tables of readings: as JSON, at their bounds, their size, and back again.

use super::*;
use crate::{Envelope, Kind};
use proptest::prelude::*;
use std::boxed::Box;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

const WEATHER: &[Column<'static>] = &[
    Column::new("ts", ColumnType::Counter),
    Column::new("seq", ColumnType::Counter),
    Column::new("temperature", ColumnType::Decimal(2)),
    Column::new("humidity", ColumnType::Decimal(1)),
    Column::new("pressure", ColumnType::Decimal(2)),
    Column::new("state", ColumnType::Text),
    Column::new("door_open", ColumnType::Bool),
];

fn jsons(body: &[u8], count: u32) -> Vec<String> {
    let envelope = Envelope { kind: Kind::Readings, epoch: 1, first: 1, count, body };
    let table = envelope.readings().unwrap();
    let mut rows = table.rows();
    let mut all = Vec::new();
    while let Some(row) = rows.next_row() {
        all.push(row.as_json().to_string());
    }
    assert_eq!(all.len(), count as usize);
    all
}

#[test]
fn a_row_becomes_a_json_object() {
    let mut body = [0; 256];
    let (mut writer, mut length) = TableWriter::begin(WEATHER, &mut body).unwrap();
    let rows: [[Value; 7]; 3] = [
        [1_000.into(), 1.into(), 2153.into(), (-5).into(), 101_325.into(), "run\"ning".into(), true.into()],
        [2_000.into(), 2.into(), Null.into(), (-5).into(), 101_325.into(), "run\"ning".into(), Null.into()],
        [3_000.into(), 3.into(), 2150.into(), 450.into(), 101_321.into(), Null.into(), false.into()],
    ];
    for row in &rows {
        length = writer.row(row, &mut body, length).unwrap();
    }
    assert_eq!(
        jsons(&body[..length], 3),
        [
            r#"{"ts":1000,"seq":1,"temperature":21.53,"humidity":-0.5,"pressure":1013.25,"state":"run\"ning","door_open":true}"#,
            r#"{"ts":2000,"seq":2,"temperature":null,"humidity":-0.5,"pressure":1013.25,"state":"run\"ning","door_open":null}"#,
            r#"{"ts":3000,"seq":3,"temperature":21.50,"humidity":45.0,"pressure":1013.21,"state":null,"door_open":false}"#,
        ]
    );
}

#[test]
fn a_full_buffer_leaves_the_table_as_it_was() {
    let mut body = vec![0; 120];
    let (mut writer, mut length) = TableWriter::begin(WEATHER, &mut body).unwrap();
    let mut rows = 0;
    let row = |n: i64| -> [Value<'static>; 7] {
        let text = if n % 2 == 0 { "on" } else { "off" };
        [n.into(), n.into(), (n * 77).into(), Null.into(), (n * n).into(), text.into(), (n % 3 == 0).into()]
    };
    loop {
        match writer.row(&row(rows), &mut body, length) {
            Ok(longer) => length = longer,
            Err(why) => break assert_eq!(why, TableError::Full),
        }
        rows += 1;
    }
    assert!(rows > 2);
    assert_eq!(jsons(&body[..length], rows as u32).len(), rows as usize);
    assert_eq!(writer.row(&[Value::Null; 3], &mut body, length), Err(TableError::Shape));
    assert_eq!(writer.row(&[Value::Bool(true); 7], &mut body, length), Err(TableError::Shape));
    let long = "x".repeat(ROW_TEXT_BYTES_MAX + 1);
    let mut body = vec![0; 2_000];
    const TEXT: &[Column<'static>] = &[Column::new("t", ColumnType::Text)];
    let (mut writer, length) = TableWriter::begin(TEXT, &mut body).unwrap();
    assert_eq!(writer.row(&[long.as_str().into()], &mut body, length), Err(TableError::Limit));
}

#[test]
fn typical_telemetry_is_six_times_smaller_than_its_json() {
    let (mut bytes, mut json, mut seed) = (0, 0, 7u64);
    let mut random = |below: i64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as i64 % below
    };
    // A sensor a second, in publishes of at most 512 bytes, over an hour; the clock jitters.
    let (mut temperature, mut humidity, mut pressure) = (2_150, 455, 101_325);
    let mut pending: Option<(TableWriter, usize, u32)> = None;
    let mut body = [0; 512];
    for n in 0..3_600 {
        temperature += random(7) - 3;
        humidity += random(3) - 1;
        pressure += random(5) - 2;
        let time = 1_790_000_000_000 + n * 1_000 + random(3) - 1;
        let row: [Value; 7] = [
            time.into(),
            n.into(),
            temperature.into(),
            humidity.into(),
            pressure.into(),
            "running".into(),
            false.into(),
        ];
        loop {
            let (writer, length, count) = pending.get_or_insert_with(|| {
                let (writer, length) = TableWriter::begin(WEATHER, &mut body).unwrap();
                (writer, length, 0)
            });
            match writer.row(&row, &mut body, *length) {
                Ok(longer) => {
                    (*length, *count) = (longer, *count + 1);
                    break;
                }
                Err(_) => {
                    // The head of the envelope and what PUBLISH needs beside it are counted as well.
                    bytes += *length + 20 + 60;
                    json += jsons(&body[..*length], *count).iter().map(|json| json.len()).sum::<usize>();
                    pending = None;
                }
            }
        }
    }
    let ratio = json as f64 / bytes as f64;
    std::println!("{json} bytes of JSON in {bytes}: {ratio:.1} times smaller");
    assert!(ratio > 6.0, "{ratio}");
}

fn any_value(of: ColumnType) -> BoxedStrategy<Value<'static>> {
    let value = match of {
        ColumnType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ColumnType::Float => any::<f32>().prop_map(Value::Float).boxed(),
        ColumnType::Text => "[a-c\"\\\\\n]{0,6}".prop_map(|text| Value::Text(Box::leak(text.into_boxed_str()))).boxed(),
        _ => prop_oneof![any::<i64>(), -3i64..3, Just(i64::MIN), Just(i64::MAX)].prop_map(Value::Integer).boxed(),
    };
    prop_oneof![6 => value, 1 => Just(Value::Null)].boxed()
}

fn any_table() -> impl Strategy<Value = (&'static [Column<'static>], Vec<Vec<Value<'static>>>)> {
    let column = (0u8..6, 0u8..=SCALE_MAX).prop_map(|(of, scale)| match type_of(of).unwrap() {
        ColumnType::Decimal(_) => ColumnType::Decimal(scale),
        of => of,
    });
    proptest::collection::vec(column, 1..=COLUMNS_MAX).prop_flat_map(|types| {
        let row: Vec<_> = types.iter().map(|of| any_value(*of)).collect();
        let columns: Vec<Column<'static>> = types
            .iter()
            .enumerate()
            .map(|(at, of)| Column::new(Box::leak(format!("c{at}").into_boxed_str()), *of))
            .collect();
        (Just(&*Box::leak(columns.into_boxed_slice())), proptest::collection::vec(row, 1..20))
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read((columns, rows) in any_table()) {
        let mut body = vec![0; 16 << 10];
        let (mut writer, mut length) = TableWriter::begin(columns, &mut body).unwrap();
        for row in &rows {
            length = writer.row(row, &mut body, length).unwrap();
        }
        let table = Table::read(&body[..length], rows.len() as u32).unwrap();
        prop_assert_eq!(table.columns(), columns);
        let mut read = table.rows();
        for row in &rows {
            let expected: Vec<Value> = row.iter().map(|value| match value {
                Value::Integer(i64::MIN) => Value::Null,
                Value::Float(float) if !float.is_finite() => Value::Null,
                value => *value,
            }).collect();
            let got = read.next_row().unwrap();
            prop_assert_eq!(got.values(), &expected[..]);
            let json: serde_json::Value = serde_json::from_str(&got.as_json().to_string()).unwrap();
            prop_assert_eq!(json.as_object().unwrap().len(), columns.len());
        }
        for shorter in 0..length {
            prop_assert!(Table::read(&body[..shorter], rows.len() as u32).is_err());
        }
    }
}
