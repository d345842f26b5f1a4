package demo

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Markers are the strings that the marked customers carry in their personal values, and that may be found nowhere but in
// the databases themselves.
var Markers = []string{"zqcanary", "0699980", "+33699980", "1999998", "FR76zqc0"}

// markEvery says that each so-manieth customer is a marked one.
const markEvery = 10

// person is a customer of the publisher before anything happens to him or her.
type person struct {
	id                   int64
	last, first          string
	nationalID           string
	born                 time.Time
	gender               string
	hobby, household     string
	street, postal, city string
	oldStreet            string
	email, oldEmail      string
	phone                string
	login                string
	holder, iban, token  string
	answer               string
	magazine             string
}

var (
	firstNames = strings.Fields(`Marie Jean Camille Lucas Léa Hugo Manon Louis Chloé Gabriel Inès Arthur Emma Jules Jade Adam
		Louise Raphaël Alice Paul Lina Ethan Rose Nathan Anna Tom Éléonore François Zoé Théo Hélène Benoît Aïcha Mehdi Océane Anaïs`)
	lastNames = strings.Fields(`Martin Bernard Dubois Thomas Robert Richard Petit Durand Leroy Moreau Simon Laurent Lefèvre
		Michel García David Bertrand Roux Vincent Fournier Morel Girard André Mercier Dupont Lambert Bonnet François Martinez Legrand
		Garnier Faure Rousseau Blanc Guérin Muller Henry Roussel Nicolas Perrin Morin Mathieu Clément Gauthier Dumont Lopez`)
	streets = []string{
		"rue de la République", "avenue Victor Hugo", "place du Marché", "boulevard Voltaire", "chemin des Vignes",
		"rue Pasteur", "impasse des Lilas", "quai de la Loire", "rue du Général-Leclerc", "allée des Tilleuls",
	}
	towns = [][2]string{
		{"75011", "Paris"},
		{"69003", "Lyon"},
		{"13006", "Marseille"},
		{"31000", "Toulouse"},
		{"44000", "Nantes"},
		{"67000", "Strasbourg"},
		{"33000", "Bordeaux"},
		{"59000", "Lille"},
		{"35000", "Rennes"},
		{"97400", "Saint-Denis"},
	}
	magazines = []string{"Jardins de France", "Le Petit Randonneur", "Cuisine et Terroir", "Sciences Hebdo", "Patrimoines"}
	domains   = []string{"exemple.fr", "courriel.example", "poste.example", "boite.example"}
)

// newPerson makes customer number id; the same generator state gives the same person.
func newPerson(r *rand.Rand, id int64) person {
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	p := person{
		id:        id,
		last:      pick(lastNames),
		first:     pick(firstNames),
		born:      time.Date(1940+r.IntN(65), time.Month(1+r.IntN(12)), 1+r.IntN(28), 0, 0, 0, 0, time.UTC),
		gender:    pick([]string{"F", "M"}),
		hobby:     pick([]string{"jardinage", "voile", "lecture", "cuisine"}),
		household: pick([]string{"seul", "couple", "famille"}),
		street:    fmt.Sprintf("%d %s", 1+r.IntN(180), pick(streets)),
		oldStreet: fmt.Sprintf("%d %s", 1+r.IntN(180), pick(streets)),
		answer:    pick([]string{"Je lis le soir.", "Deux enfants, un chien.", "Abonnée depuis 1998.", "Plutôt le dimanche."}),
		magazine:  pick(magazines),
	}
	town := towns[r.IntN(len(towns))]
	p.postal, p.city = town[0], town[1]
	mark := ""
	phone, national, iban := "06%08d", "2%014d", "FR76%d"
	if id%markEvery == 0 {
		mark, phone, national, iban = ".zqcanary", "0699980%03d", "1999998%08d", "FR76zqc0%d"
		p.last += "-Zqcanary"
		p.street += " zqcanary"
		p.oldStreet += " zqcanary"
		p.answer += " zqcanary"
		p.hobby += " zqcanary"
	}
	local := strings.ToLower(fold.Replace(p.first)) + mark
	p.email = fmt.Sprintf("%s.%d@%s", local, id, pick(domains))
	p.oldEmail = fmt.Sprintf("%s.ancien%d@%s", local, id, pick(domains))
	if strings.Contains(phone, "%03d") {
		p.phone = fmt.Sprintf(phone, id/markEvery%1000)
	} else {
		p.phone = fmt.Sprintf(phone, r.IntN(100_000_000))
	}
	if id%markEvery == 0 {
		p.nationalID = fmt.Sprintf(national, id)
	} else {
		p.nationalID = fmt.Sprintf(national, r.Int64N(1e14))
	}
	p.iban = fmt.Sprintf(iban, 10_000_000+id)
	p.login = local + fmt.Sprint(id)
	p.holder = p.first + " " + p.last
	p.token = fmt.Sprintf("tok-%016x%s", r.Uint64(), mark)
	return p
}

// fold takes the accents off what goes into an e-mail address.
var fold = strings.NewReplacer("é", "e", "É", "e", "è", "e", "ë", "e", "ï", "i", "î", "i", "ç", "c", "à", "a", "ô", "o", "ü", "u", "í", "i")
