// Package ledger is what the ledger of a replica means, whatever SQL dialect its tables speak: subjects and their facts,
// the work of one transaction, cases, receipts, findings and the words in which the tables and the receipts say it.
// sinks/postgres and sinks/mysql keep the statements, the catalog and the driver's types to themselves; no SQL is here.
//
// Nothing in the package is safe for concurrent use unless it says so: a Core is, everything else belongs to one
// transaction.
package ledger
