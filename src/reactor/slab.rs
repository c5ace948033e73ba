//! Numbered places for things in flight; the number is the token of their completions.

/// A vector with holes; numbers of removed entries are used again, last one first.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Stores `value` and returns its number.
    pub fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(token) => {
                self.entries[token as usize] = Some(value);
                token
            }
            None => {
                self.entries.push(Some(value));
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// The entry with this number, if it is in use.
    pub fn get_mut(&mut self, token: u32) -> Option<&mut T> {
        self.entries.get_mut(token as usize)?.as_mut()
    }

    /// Takes the entry out; its number is free.
    pub fn remove(&mut self, token: u32) -> Option<T> {
        let value = self.entries.get_mut(token as usize)?.take()?;
        self.free.push(token);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn numbers_are_used_again_only_after_removal() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_ne!(a, b);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('c'), a);
        assert_eq!(slab.get_mut(b), Some(&mut 'b'));
    }
}
