package template

import (
	"math"
	"reflect"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"
)

// A cost says of one call how many bytes it can take at the most while it works, judging by its arguments. Where a
// function takes time rather than memory, a byte stands for the time: about 20 ns.
type cost func(args []reflect.Value) float64

// A class is functions with one cost.
type class struct {
	cost  cost
	names string
	slow  bool // it takes seconds
}

// classes has each function that a template can call; one that is not here does not exist.
var classes = byName(costs)

func byName(all []class) map[string]class {
	named := map[string]class{}
	for _, c := range all {
		for _, name := range strings.Fields(c.names) {
			named[name] = c
		}
	}
	return named
}

var costs = []class{
	// They return a number, a word, a part of what they are given, or nothing; and they print none of it, not even in an
	// error. The first line is text/template's own, which cannot be replaced.
	{cost: nothing, names: `and or not len index slice call eq ne lt le gt ge
		in contains env mustEnv envOrDefault scratch byKey explode
		sprig_hello sprig_default sprig_empty sprig_coalesce sprig_all sprig_any sprig_ternary sprig_typeOf sprig_typeIs
		sprig_typeIsLike sprig_kindOf sprig_kindIs sprig_get sprig_unset sprig_hasKey sprig_dig sprig_first sprig_mustFirst
		sprig_last sprig_mustLast`},
	{cost: entry, names: `sprig_set`},
	{cost: shallow, names: `sprig_list sprig_tuple sprig_append sprig_push sprig_mustAppend sprig_mustPush sprig_prepend sprig_mustPrepend
		sprig_concat sprig_rest sprig_mustRest sprig_initial sprig_mustInitial sprig_reverse sprig_mustReverse sprig_compact
		sprig_mustCompact sprig_chunk sprig_mustChunk sprig_keys sprig_values sprig_pick sprig_omit sprig_pluck`},
	{cost: times(3), names: `print println base64Decode base64Encode base64URLDecode base64URLEncode trim trimPrefix trimSuffix trimSpace
		toLower toUpper toTitle sha256Hex md5sum hmacSHA256Hex timestamp
		byPort byTag
		sprig_abbrev sprig_abbrevboth sprig_trunc sprig_trim sprig_upper sprig_lower sprig_title sprig_untitle sprig_substr
		sprig_trimall sprig_trimAll sprig_trimSuffix sprig_trimPrefix sprig_nospace sprig_initials sprig_swapcase
		sprig_camelcase sprig_snakecase sprig_kebabcase sprig_contains sprig_hasPrefix sprig_hasSuffix sprig_squote sprig_cat
		sprig_plural sprig_sha1sum sprig_sha256sum sprig_sha512sum sprig_adler32sum sprig_toString sprig_toStrings
		sprig_atoi sprig_int64 sprig_int sprig_float64 sprig_toDecimal sprig_add1 sprig_add sprig_sub sprig_div sprig_mod
		sprig_mul sprig_randInt sprig_add1f sprig_addf sprig_subf sprig_divf sprig_mulf sprig_biggest sprig_max sprig_min
		sprig_maxf sprig_minf sprig_ceil sprig_floor sprig_round sprig_deepEqual sprig_slice sprig_mustSlice sprig_has
		sprig_mustHas sprig_base sprig_dir sprig_clean sprig_ext sprig_isAbs sprig_osBase sprig_osClean sprig_osDir
		sprig_osExt sprig_osIsAbs sprig_b64enc sprig_b64dec sprig_b32enc sprig_b32dec sprig_encryptAES sprig_decryptAES
		sprig_ago sprig_must_date_modify sprig_mustDateModify sprig_mustToDate sprig_toDate sprig_unixEpoch sprig_duration
		sprig_durationRound sprig_regexQuoteMeta sprig_fail`},
	// What escapes: one byte becomes up to six, in JSON for example.
	{cost: times(8), names: `add subtract multiply divide modulo minimum maximum html js urlquery toJSON toUnescapedJSON parseBool parseFloat parseInt parseUint mergeMap mergeMapWithOverride
		sprig_toJson sprig_mustToJson sprig_toRawJson sprig_mustToRawJson sprig_quote sprig_dict sprig_merge sprig_mustMerge
		sprig_mergeOverwrite sprig_mustMergeOverwrite sprig_deepCopy sprig_mustDeepCopy sprig_urlParse sprig_urlJoin
		sprig_shuffle sprig_sortAlpha`},
	{cost: times(24), names: `byMeta`},
	{cost: times(1024), names: `sprig_semver sprig_semverCompare`},
	{cost: nested, names: `toJSONPretty toUnescapedJSONPretty toYAML toTOML sprig_toPrettyJson sprig_mustToPrettyJson`},
	{cost: parsed(",[{", 96), names: `parseJSON sprig_fromJson sprig_mustFromJson`},
	{cost: parsed(",[{}:-?\n", 768), names: `parseYAML`},
	{cost: paths, names: `explodeMap`},

	{cost: answer, names: `secret secrets secretExists pkiCert file nomadServices nomadService nomadVar nomadVarExists nomadVarList nomadVarListSafe`},
	{cost: keys, slow: true, names: `sprig_bcrypt sprig_htpasswd sprig_derivePassword sprig_genPrivateKey sprig_genCA sprig_genCAWithKey
		sprig_genSelfSignedCert sprig_genSelfSignedCertWithKey sprig_genSignedCert sprig_genSignedCertWithKey
		sprig_buildCustomCert`},

	{cost: func(a []reflect.Value) float64 { return 8 * span(limits(a)) }, names: `loop`},
	{cost: func(a []reflect.Value) float64 { return 24 * span(0, number(a[0]), 1) }, names: `sprig_until`},
	{cost: func(a []reflect.Value) float64 { return 24 * span(number(a[0]), number(a[1]), number(a[2])) },
		names: `sprig_untilStep`},
	{cost: func(a []reflect.Value) float64 { return 128 * span(sequence(a)) }, names: `sprig_seq`},
	{cost: func(a []reflect.Value) float64 { return 16 + number(a[0])*length(a[1]) }, names: `sprig_repeat`},
	{cost: func(a []reflect.Value) float64 { return 3 * (size(a[1]) + number(a[0])*(1+occurs(a[1], "\n"))) },
		names: `indent sprig_indent sprig_nindent`},
	{cost: func(a []reflect.Value) float64 { return 3*size(a...) + measure(a[1], maxHeld).values*size(a[0]) },
		names: `join sprig_join`},
	{cost: func(a []reflect.Value) float64 { return size(a[2]) + occurs(a[2], a[0].String())*size(a[1]) },
		names: `replaceAll sprig_replace`},
	{cost: func(a []reflect.Value) float64 { return size(a[1]) + 40*occurs(a[1], a[0].String()) },
		names: `split sprig_splitList`},
	{cost: func(a []reflect.Value) float64 { return 128 * (1 + occurs(a[1], a[0].String())) }, names: `sprig_split`},
	{cost: func(a []reflect.Value) float64 { return 128 * (1 + occurs(a[2], a[0].String())) },
		names: `splitToMap sprig_splitn`},
	{cost: func(a []reflect.Value) float64 { return 3 * 2 * size(a[1]) }, names: `sprig_wrap`},
	{cost: func(a []reflect.Value) float64 { return 3 * size(a[2]) * (1 + length(a[1])) }, names: `sprig_wrapWith`},
	{cost: formatted, names: `printf`},
	{cost: pairs, names: `containsAll containsAny containsNone containsNotAll sprig_without sprig_mustWithout sprig_uniq sprig_mustUniq`},

	{cost: func(a []reflect.Value) float64 { return matching(a[0], a[1]) },
		names: `regexMatch sprig_regexMatch sprig_mustRegexMatch sprig_regexFind sprig_mustRegexFind`},
	{cost: func(a []reflect.Value) float64 { return matching(a[0], a[1]) + 40*length(a[1]) },
		names: `sprig_regexFindAll sprig_mustRegexFindAll sprig_regexSplit sprig_mustRegexSplit`},
	{cost: func(a []reflect.Value) float64 { return matching(a[0], a[2]) + 2*size(a[2])*size(a[1]) },
		names: `regexReplaceAll`},
	{cost: func(a []reflect.Value) float64 { return matching(a[0], a[1]) + 2*size(a[2])*size(a[1]) },
		names: `sprig_regexReplaceAll sprig_mustRegexReplaceAll sprig_regexReplaceAllLiteral sprig_mustRegexReplaceAllLiteral`},
}

func nothing([]reflect.Value) float64 { return 0 }

func entry([]reflect.Value) float64 { return 128 }

// answer is what the Source or a file may give, and an error that quotes the question.
func answer(args []reflect.Value) float64 { return MaxOutput + 8*size(args...) }

// keys is for what takes seconds, and scrypt 32 MiB, of little: with a key of more than 24 KiB it would take minutes.
func keys(args []reflect.Value) float64 { return 40<<20 + 1024*size(args...) }

func times(n float64) cost {
	return func(args []reflect.Value) float64 { return n * size(args...) }
}

// shallow is the cost of a new list or map with the elements of old ones.
func shallow(args []reflect.Value) float64 {
	n := 64.0
	for _, a := range args {
		switch a = indirect(a); a.Kind() {
		case reflect.Slice, reflect.Array:
			n += 16 + 16*float64(a.Len())
		case reflect.Map:
			n += 64 * float64(a.Len())
		default:
			n += 16
		}
	}
	return n
}

// nested is for what puts the names of all that a value is in, or as many spaces, before each of its lines.
func nested(args []reflect.Value) float64 {
	s := measure(args[0], maxHeld)
	return 8*s.bytes + s.lines*s.path
}

// parsed is for text with so many bytes of values behind each of the marks between them.
func parsed(marks string, each float64) cost {
	return func(args []reflect.Value) float64 {
		n := 0.0
		for _, mark := range marks {
			n += occurs(args[0], string(mark))
		}
		return 2*size(args[0]) + each*n
	}
}

// paths is for a map in each place of a path, and as many copies of what is left of the path.
func paths(args []reflect.Value) float64 {
	n := shallow(args)
	for key := range args[0].Seq() {
		n += occurs(key, "/") * (512 + 20*length(key))
	}
	return n
}

// pairs is for what compares each element of the first argument with all of the others, or with its own where there is
// none.
func pairs(args []reflect.Value) float64 {
	others := args[1:]
	if len(others) == 0 {
		others = args
	}
	return 3*size(args...) + measure(args[0], maxHeld).values*size(others...)/16
}

// formatted is for a format whose verbs may have a width, and may print an argument again.
func formatted(args []reflect.Value) float64 {
	const widest = 1e6 // of package fmt
	format := args[0].String()
	verbs, width, again := occurs(args[0], "%"), 0.0, 1.0
	for _, digits := range strings.FieldsFunc(format, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(digits)
		if err != nil || n > widest {
			n = widest
		}
		width = max(width, float64(n))
	}
	if strings.Contains(format, "*") {
		width = widest
	}
	if strings.Contains(format, "[") {
		again = max(1, verbs)
	}
	return 3*size(args[0]) + verbs*2*width + again*8*size(args[1:]...)
}

// matching is the time of a regular expression, which is the size of its program times that of the text (and of all
// that it remembers, at each place).
func matching(pattern, text reflect.Value) float64 {
	if pattern.Len() > 16<<10 {
		return math.Inf(1)
	}
	re, err := syntax.Parse(pattern.String(), syntax.Perl)
	if err != nil {
		return 0
	}
	return program(re) * float64(1+re.MaxCap()) * (256 + length(text))
}

func program(re *syntax.Regexp) float64 {
	n := 1 + float64(len(re.Rune))
	if re.Op == syntax.OpCharClass {
		n = 2
	}
	for _, sub := range re.Sub {
		n += program(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= float64(max(re.Min, re.Max, 1))
	}
	return n
}

// limits are those of loop.
func limits(args []reflect.Value) (start, stop, step float64) {
	switch len(args) {
	case 1:
		return 0, number(args[0]), 1
	case 2:
		return number(args[0]), max(number(args[0]), number(args[1])), 1
	}
	return 0, 0, 1
}

// sequence are those of sprig_seq: an end, a start and an end, or a start, a step and an end.
func sequence(args []reflect.Value) (start, stop, step float64) {
	switch len(args) {
	case 1:
		return 1, number(args[0]), 1
	case 2:
		return number(args[0]), number(args[1]), 1
	case 3:
		return number(args[0]), number(args[2]), number(args[1])
	}
	return 0, 0, 1
}

// span is how many steps there are. Far from zero nobody counts, and the numbers of the functions would overflow.
func span(start, stop, step float64) float64 {
	if max(math.Abs(start), math.Abs(stop), math.Abs(step)) > 1<<53 {
		return math.Inf(1)
	}
	return 2 + math.Abs(stop-start)/max(1, math.Abs(step))
}

// number is 0 for what is none, which the function itself will tell.
func number(v reflect.Value) float64 {
	switch v = indirect(v); {
	case v.CanInt():
		return float64(v.Int())
	case v.CanUint():
		return float64(v.Uint())
	case v.Kind() == reflect.String:
		n, _ := strconv.ParseInt(v.String(), 10, 64)
		return float64(n)
	}
	return 0
}

func length(s reflect.Value) float64 { return float64(s.Len()) }

func occurs(s reflect.Value, what string) float64 { return float64(strings.Count(s.String(), what)) }

// size is how many bytes the values take, each as a tree.
func size(values ...reflect.Value) float64 {
	n := 0.0
	for _, v := range values {
		n += measure(v, maxHeld).bytes
	}
	return n
}

// measure looks at a value as a tree, which it is for what prints or copies it: what is in it twice counts twice. A
// value that has more than most bytes, or itself in it, or that is deeper than any stack should get, has an infinite
// size.
func measure(v reflect.Value, most float64) extent {
	t := extent{most: most}
	t.add(v, 0, 0)
	return t
}

type extent struct {
	most          float64
	bytes, values float64
	lines         float64 // of text, where each value begins one
	// bytes of the longest path to a value: of names with all their bytes escaped, and of indentation
	path float64
}

const maxDepth = 2000 // a list in a list is two

var timeType = reflect.TypeFor[time.Time]()

func (t *extent) add(v reflect.Value, path float64, depth int) {
	t.bytes, t.values, t.lines, t.path = t.bytes+8, t.values+1, t.lines+1, max(t.path, path)
	if t.bytes > t.most || depth > maxDepth {
		t.bytes = math.Inf(1)
		return
	}
	switch v.Kind() {
	case reflect.String:
		t.bytes += 8 + length(v)
		t.lines += occurs(v, "\n")
	case reflect.Pointer, reflect.Interface:
		// No function follows a pointer in a field that is not exported, and Nomad's variables point back by such.
		if !v.IsNil() && (v.Kind() == reflect.Interface || v.CanInterface()) {
			t.add(v.Elem(), path, depth+1)
		}
	case reflect.Slice, reflect.Array:
		if k := v.Type().Elem().Kind(); k >= reflect.Bool && k <= reflect.Complex128 {
			t.bytes, t.values, t.lines = t.bytes+8*length(v), t.values+length(v), t.lines+length(v)
			break
		}
		for i := 0; i < v.Len() && t.bytes <= t.most; i++ {
			t.add(v.Index(i), path+4, depth+1)
		}
	case reflect.Map:
		for entries := v.MapRange(); t.bytes <= t.most && entries.Next(); {
			key := entries.Key()
			t.bytes += 48
			t.add(key, path, depth+1)
			name := 0.0
			if key.Kind() == reflect.String {
				name = 6 * length(key)
			}
			t.add(entries.Value(), path+4+name, depth+1)
		}
	case reflect.Struct:
		for i := 0; v.Type() != timeType && i < v.NumField(); i++ {
			t.add(v.Field(i), path+4, depth+1)
		}
	}
}
