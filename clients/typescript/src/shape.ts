/** Checks that a value from outside has the shape of a type. @module */

import { Malformed } from "./codec.js";

/** Returns `value` as a `T`, which it was checked to be; `path` names it in the error. */
export type Shape<T> = (value: unknown, path: string) => T;

const fail = (path: string, wanted: string): never => {
  throw new Malformed(`${path} is not ${wanted}`);
};

/** Any JSON value. */
export const anything: Shape<unknown> = (value) => value;

/** A string. */
export const text: Shape<string> = (value, path) => (typeof value === "string" ? value : fail(path, "a string"));

/** A finite number. */
export const number: Shape<number> = (value, path) =>
  typeof value === "number" && Number.isFinite(value) ? value : fail(path, "a number");

/** An integer. */
export const integer: Shape<number> = (value, path) => (Number.isInteger(value) ? (value as number) : fail(path, "an integer"));

/** A boolean. */
export const flag: Shape<boolean> = (value, path) => (typeof value === "boolean" ? value : fail(path, "a boolean"));

/** An id: an integer that every JSON reader keeps exactly, or a string. */
export const id: Shape<number | string> = (value, path) =>
  Number.isSafeInteger(value) || typeof value === "string" ? (value as number | string) : fail(path, "an id");

/** An object with any fields. */
export const record: Shape<Record<string, unknown>> = (value, path) =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : fail(path, "an object");

/** `true`, and nothing else. */
export const always: Shape<true> = (value, path) => (value === true ? value : fail(path, "true"));

/** A list of `item`. */
export function list<T>(item: Shape<T>): Shape<T[]> {
  return (value, path) =>
    Array.isArray(value) ? value.map((each: unknown, at) => item(each, `${path}[${at}]`)) : fail(path, "a list");
}

/** `shape`, or null. */
export function nullable<T>(shape: Shape<T>): Shape<T | null> {
  return (value, path) => (value === null ? null : shape(value, path));
}

/** A field that may be missing, or null, which is the same: {@link object} removes it. */
export function optional<T>(shape: Shape<T>): Shape<T | undefined> {
  return (value, path) => (value === undefined || value === null ? undefined : shape(value, path));
}

/** An object with these fields. Others are ignored and kept: a newer daemon may add some. */
export function object<T extends object>(fields: { readonly [Key in keyof T]-?: Shape<T[Key]> }): Shape<T> {
  const shapes = Object.entries(fields) as [string, Shape<unknown>][];
  return (value, path) => {
    const found = record(value, path);
    for (const [name, shape] of shapes) {
      const present = Object.hasOwn(found, name);
      const field = shape(present ? found[name] : undefined, `${path}.${name}`);
      if (present && field === undefined) delete found[name];
    }
    return found as T;
  };
}
