//! Where JSON is to be read more strictly than serde does by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor};

/// A structure written as an object. serde's derive would also take its fields as a list, in their order in the code.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// The same where null may stand for nothing.
pub fn optional_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
}

/// What was left out, for which null may stand too, is the default.
pub fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A whole number, which may be written as one with a point or an exponent (`2e9`); null stands for nothing.
pub fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    const NOT_NEGATIVE: &str = "a whole number that is not negative";
    struct Whole;
    impl<'de> Visitor<'de> for Whole {
        type Value = Option<u64>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
            u64::try_from(number).map(Some).map_err(|_| E::invalid_value(Unexpected::Signed(number), &NOT_NEGATIVE))
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
            // 2^64, the first that is too large.
            const END: f64 = 18_446_744_073_709_551_616.0;
            let float = Unexpected::Float(number);
            match number {
                _ if number.fract() != 0.0 => Err(E::invalid_type(float, &self)),
                0.0..END => Ok(Some(number as u64)),
                END.. => {
                    Err(E::invalid_value(float, &"at most 18446744073709551615, the largest number there is here"))
                }
                _ => Err(E::invalid_value(float, &NOT_NEGATIVE)),
            }
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Whole)
}

/// An object whose keys are all different: a repeated key would silently lose a value. null is one without any.
pub fn unique_keys<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct Entries<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
        type Value = BTreeMap<String, V>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }
        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }
        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some(key) = entries.next_key::<String>()? {
                if map.contains_key(&key) {
                    return Err(Error::custom(format_args!("duplicate key `{key}`")));
                }
                map.insert(key, entries.next_value()?);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_option(Entries(PhantomData))
}

/// A list of objects, none of which may be a list of its fields' values. null is one without any.
pub fn objects<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects = Option::<Vec<Object<T>>>::deserialize(deserializer)?;
    Ok(objects.into_iter().flatten().map(|Object(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::task::{ResourceLimits, TaskRequest};

    fn memory(json: &str) -> Result<Option<u64>, String> {
        let limits = serde_json::from_str::<ResourceLimits>(&format!(r#"{{"memory_limit":{json}}}"#));
        limits.map(|limits| limits.memory_limit).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, number) in [("2e9", 2_000_000_000), ("2000000000.0", 2_000_000_000), ("1.5e1", 15), ("-0.0", 0)] {
            assert_eq!(memory(text), Ok(Some(number)), "{text}");
        }
        assert_eq!((memory("18446744073709551615"), memory("null")), (Ok(Some(u64::MAX)), Ok(None)));
        for (text, part) in [
            ("1.5", "invalid type: floating point `1.5`, expected a whole number"),
            ("1e-3", "floating point `0.001`, expected a whole number"),
            ("-1", "not negative"),
            ("-2e9", "not negative"),
            ("18446744073709551616", "expected at most 18446744073709551615"),
            ("1e300", "expected at most 18446744073709551615"),
            ("1e999", "out of range"),
            ("\"1\"", "expected a whole number"),
            ("true", "expected a whole number"),
            ("[1]", "expected a whole number"),
        ] {
            let error = memory(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_itself_or_refused(number: u64, small in 0..1u64 << 53, float: f64, digits in 1usize..12) {
            prop_assert_eq!(memory(&number.to_string()), Ok(Some(number)));
            // So far floats hold every whole number.
            prop_assert_eq!(memory(&format!("{small}.0")), Ok(Some(small)));
            prop_assert_eq!(memory(&format!("{:e}", small as f64)), Ok(Some(small)));
            prop_assert_eq!(memory(&format!("{small}{}", ".0".to_owned() + &"0".repeat(digits))), Ok(Some(small)));
            if float.is_finite() {
                let is_whole = float.fract() == 0.0 && (0.0..18_446_744_073_709_551_616.0).contains(&float);
                prop_assert_eq!(memory(&format!("{float:e}")).is_ok(), is_whole);
            }
        }
    }

    #[test]
    fn null_is_what_was_left_out() {
        let task = |json: Value| serde_json::from_value::<TaskRequest>(json).unwrap();
        let nulls =
            json!({ "command": "a", "args": null, "env": null, "files": null, "archives": null, "cache": null });
        assert_eq!(task(nulls), task(json!({ "command": "a" })));
        assert_eq!(task(json!({ "command": null })).command, None);
    }
}
