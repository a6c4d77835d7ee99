//! Small immutable string maps, which can be shared between thousands of devices; and which letters are safe to show.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use hotslot_driver::text::is_unsafe;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An immutable map from strings to strings, sorted by key. A clone shares the memory of the original.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Texts(Arc<[(Arc<str>, Arc<str>)]>);

impl Texts {
    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok();
        found.and_then(|at| self.0.get(at)).map(|(_, value)| value.as_ref())
    }

    /// Whether the map has a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Returns the keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }

    /// Returns the keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// Returns a copy of the map in which `key` has the value `value`.
    pub fn with(&self, key: &str, value: &str) -> Self {
        let others = self.0.iter().cloned();
        others.chain([(key.into(), value.into())]).collect()
    }
}

impl Default for Texts {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Texts {
    /// When a key occurs twice, the later value wins.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let entries = entries.into_iter().map(|(key, value)| (key.into(), value.into()));
        Self(entries.collect::<BTreeMap<Arc<str>, Arc<str>>>().into_iter().collect())
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(|map| map.into_iter().collect())
    }
}

/// Shares the memory of equal maps, and of equal strings in different maps.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    maps: HashSet<Texts>,
}

impl Interner {
    /// Returns a map that is equal to `map` and shares its memory with earlier maps.
    pub fn share(&mut self, map: Texts) -> Texts {
        if let Some(known) = self.maps.get(&map) {
            return known.clone();
        }
        let mut text = |text: &Arc<str>| match self.texts.get(text) {
            Some(known) => Arc::clone(known),
            None => {
                self.texts.insert(Arc::clone(text));
                Arc::clone(text)
            }
        };
        let shared = Texts(map.0.iter().map(|(key, value)| (text(key), text(value))).collect());
        self.maps.insert(shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_maps_and_strings_share_memory() {
        let mut sharing = Interner::default();
        let map = |vf: &str| Texts::from_iter([("phys_function", "0000:04:00.0"), ("serial", vf)]);
        let [one, same, other] = [map("1"), map("1"), map("2")].map(|map| sharing.share(map));
        assert!(Arc::ptr_eq(&one.0, &same.0), "two equal maps");
        assert!(!Arc::ptr_eq(&one.0, &other.0));
        let key = |map: &Texts, at: usize| (map.0[at].0.as_ptr(), map.0[at].1.as_ptr());
        assert_eq!(key(&one, 0), key(&other, 0), "equal strings in different maps");
        assert_ne!(key(&one, 1).1, key(&other, 1).1);
    }

    proptest! {
        #[test]
        fn texts_behave_like_a_btree_map(entries in prop::collection::vec(("[a-d]{0,2}", "\\PC{0,4}"), 0..8)) {
            let map: BTreeMap<String, String> = entries.iter().cloned().collect();
            let texts = Interner::default().share(entries.into_iter().collect());
            let read: BTreeMap<_, _> =
                texts.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            prop_assert_eq!(&read, &map);
            for key in ["", "a", "b", "cd", "zz"] {
                prop_assert_eq!(texts.get(key), map.get(key).map(String::as_str));
                let mut with = map.clone();
                with.insert(key.to_owned(), "new".to_owned());
                prop_assert_eq!(texts.with(key, "new"), with.into_iter().collect());
            }
            let json = serde_json::to_string(&texts).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Texts>(&json).unwrap(), texts);
        }
    }
}
