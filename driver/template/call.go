package template

import (
	"errors"
	"fmt"
	"reflect"
	"text/template"
)

// longest is how many bytes an error of a function may have: many quote what they were given.
const longest = 16 << 10

var errorType = reflect.TypeFor[error]()

// funcs returns the functions of these names as a template calls them.
func (x *execution) funcs(names map[string]bool) template.FuncMap {
	own, all := x.own(), x.counters()
	for name := range names {
		f := own[name]
		if f == nil {
			f = language[name]
		}
		if f != nil { // else it is text/template's own
			all[name] = x.guarded(classes[name], reflect.ValueOf(f))
		}
	}
	return all
}

// guarded returns f as a function that is called only while there is time and room for what it may take. What it
// returns is counted, but for what it was given.
func (x *execution) guarded(c class, f reflect.Value) any {
	t := f.Type()
	var in []reflect.Type
	for i := range t.NumIn() {
		in = append(in, t.In(i))
	}
	guarded := reflect.FuncOf(in, []reflect.Type{t.Out(0), errorType}, t.IsVariadic())
	return reflect.MakeFunc(guarded, func(args []reflect.Value) []reflect.Value {
		most := c.cost(each(args, t.IsVariadic()))
		if !(x.in.Budget.made+most <= maxHeld) { // which is true of no number, too
			return fails(t, &failed{err: errTooLarge})
		}
		if err := x.over(); err != nil {
			return fails(t, err)
		}
		result, err := x.invoke(c, f, args)
		if err != nil {
			return fails(t, shortened(err))
		}
		if most > 0 {
			x.in.Budget.made += min(most, measure(result, most).bytes)
		}
		if x.in.Budget.made > maxHeld { // others may have had their turn meanwhile
			return fails(t, &failed{err: errTooLarge})
		}
		return []reflect.Value{result, reflect.Zero(errorType)}
	}).Interface()
}

// each returns every argument by itself.
func each(args []reflect.Value, variadic bool) []reflect.Value {
	if !variadic {
		return args
	}
	last := args[len(args)-1]
	all := append([]reflect.Value{}, args[:len(args)-1]...)
	for i := range last.Len() {
		all = append(all, last.Index(i))
	}
	return all
}

func fails(t reflect.Type, err error) []reflect.Value {
	return []reflect.Value{reflect.Zero(t.Out(0)), reflect.ValueOf(&err).Elem()}
}

func shortened(err error) error {
	if len(err.Error()) <= longest {
		return err
	}
	short := &shown{fmt.Sprintf("an error with more than the %d bytes that are shown", longest), err}
	if f := (*failed)(nil); errors.As(err, &f) {
		return &failed{&shown{short.text, f.err}, f.asked}
	}
	return short
}

// invoke calls f. What is slow has no place meanwhile, and cannot be ended: it goes on by itself where the time is over
// before.
func (x *execution) invoke(c class, f reflect.Value, args []reflect.Value) (result reflect.Value, err error) {
	if !c.slow {
		return invoke(f, args)
	}
	return outside(x, func() (result reflect.Value, err error) {
		select {
		case slowCalls <- struct{}{}:
		case <-x.ctx.Done():
			return result, &failed{err: x.ctx.Err()}
		}
		type outcome struct {
			result reflect.Value
			err    error
		}
		done := make(chan outcome, 1)
		go func() {
			result, err := invoke(f, args)
			<-slowCalls
			done <- outcome{result, err}
		}()
		select {
		case o := <-done:
			return o.result, o.err
		case <-x.ctx.Done():
			return result, &failed{err: x.ctx.Err()}
		}
	})
}

// invoke takes a panic for an error, as text/template does.
func invoke(f reflect.Value, args []reflect.Value) (result reflect.Value, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	call := f.Call
	if f.Type().IsVariadic() {
		call = f.CallSlice
	}
	results := call(args)
	if len(results) == 2 && !results[1].IsNil() {
		err = results[1].Interface().(error)
	}
	return results[0], err
}
