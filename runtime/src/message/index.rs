//! Indices: a place in a list of services, of sources, of sinks, each with a type of its own.
//! In: places. Out: values that index such lists and nothing else by mistake.

/// Defines a type of indices: a number with an `Index` of every vector and slice.
macro_rules! index {
    ($(#[$doc:meta])* $name:ident($number:ident)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($number);

        impl $name {
            /// The first one.
            pub const FIRST: Self = Self(0);

            /// The index of a place, from 0.
            ///
            /// # Panics
            /// If there are more places than its number can count: lists of them are bounded far below.
            pub fn nth(place: usize) -> Self {
                Self($number::try_from(place).expect("such lists are bounded far below what the index counts"))
            }

            /// The place.
            pub fn place(self) -> usize {
                self.0 as usize
            }

            /// The indices of a list of this length.
            pub fn all(len: usize) -> impl Iterator<Item = Self> + use<> {
                (0..len).map(Self::nth)
            }
        }

        impl<T> std::ops::Index<$name> for Vec<T> {
            type Output = T;

            fn index(&self, index: $name) -> &T {
                &self[index.place()]
            }
        }

        impl<T> std::ops::IndexMut<$name> for Vec<T> {
            fn index_mut(&mut self, index: $name) -> &mut T {
                &mut self[index.place()]
            }
        }

        impl<T> std::ops::Index<$name> for [T] {
            type Output = T;

            fn index(&self, index: $name) -> &T {
                &self[index.place()]
            }
        }

        impl<T> std::ops::IndexMut<$name> for [T] {
            fn index_mut(&mut self, index: $name) -> &mut T {
                &mut self[index.place()]
            }
        }
    };
}

pub(crate) use index;

index! {
    /// Index of a service among those of a program.
    ServiceIx(u16)
}

index! {
    /// Index of a source among those of a program.
    SourceIx(u16)
}

index! {
    /// Index of a sink among those of a program.
    SinkIx(u16)
}
