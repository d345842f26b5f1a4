package demo

import (
	"context"
	"slices"
	"time"
)

// Publisher is the invented publisher for tests that bring servers and Lethe of their own: its schemas, its customers, its
// working day, and the oracle that says what the replicas must show. It is reproducible.
type Publisher struct{ fill fill }

// NewPublisher makes a publisher with so many customers; nothing is written yet.
func NewPublisher(customers int) *Publisher { return &Publisher{newFill(customers)} }

// Schemas are the scripts that make the tables of the CRM and of the two replicas on PostgreSQL.
func Schemas() (crm, marketing, reporting string) { return postgresDialect.schemas() }

// MySQLSchemas are those for MySQL and MariaDB: scripts of many statements.
func MySQLSchemas() (crm, marketing, reporting string) { return mysqlDialect.schemas() }

// Databases are connections to the publisher's databases, in any mix of dialects. Nobody else uses them meanwhile.
type Databases struct{ CRM, Marketing, Reporting DB }

// Fill writes the customers into the three databases, in the order in which the demo does: the replicas first, as the ETL
// of last night left them.
func (p *Publisher) Fill(ctx context.Context, on Databases) error {
	if err := p.fill.marketing(ctx, on.Marketing); err != nil {
		return err
	}
	if err := p.fill.reporting(ctx, on.Reporting); err != nil {
		return err
	}
	return p.fill.crm(ctx, on.CRM)
}

// Late reports whether the customer is not in the replicas before the ETL of the day has run.
func (p *Publisher) Late(id int64) bool { return p.fill.late[id] }

// Player plays the day step by step. It is used by one goroutine.
type Player struct{ d *day }

// Play returns a player over connections that are not used by anybody else. onErased is told of each erasure as soon as
// its first COMMIT has returned.
func (p *Publisher) Play(on Databases, onErased func(id int64, at time.Time)) *Player {
	return &Player{newDay(&p.fill, on, onErased)}
}

// Step does one thing of the day.
func (p *Player) Step(ctx context.Context) error { return p.d.step(ctx) }

// Erase runs the CRM's procedure on a customer, in one transaction or in two.
func (p *Player) Erase(ctx context.Context, id int64) error { return p.d.erase(ctx, id) }

// Someone picks a customer who is not erased. There must be one.
func (p *Player) Someone() int64 { return p.d.someone() }

// FinishETL brings everybody into the replicas who is not there yet.
func (p *Player) FinishETL(ctx context.Context) error { return p.d.finishETL(ctx) }

// Reconnect gives the player other connections, after a server was down.
func (p *Player) Reconnect(on Databases) { p.d.on = on }

// Differences lists how the replicas differ from what the CRM asks for; empty means that everything has followed. It names
// ids and properties, no values.
func Differences(ctx context.Context, on Databases) ([]string, error) {
	want, err := expectations(ctx, on.CRM)
	if err != nil {
		return nil, err
	}
	marketing, err := compare(ctx, on.Marketing, oracleMarketing, want, wanted.marketing)
	if err != nil {
		return nil, err
	}
	reporting, err := compare(ctx, on.Reporting, oracleReporting, want, wanted.reporting)
	return slices.Concat(marketing, reporting), err
}
