// Package normalize brings what people write about themselves into the one form from which match keys are made: e-mail addresses, phone numbers,
// names, postal addresses, birth dates. It is a package of pure functions, for concurrent use.
//
// Each rule has a version, which is part of every key made with it: whoever changes what a rule gives for any text raises it, because the keys of
// the same person would no longer be equal, and nobody would be found. Normalising what was normalised changes nothing.
//
// Nothing here guesses: what is not surely an address, number or date gives none. A placeholder that everybody has would find everybody.
package normalize

// maxText is how much of a value is looked at, in bytes; a longer one is no contact point. It bounds the work that one row can make.
const maxText = 4096
