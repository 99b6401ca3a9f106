"use strict";
// Owns what the page computes, without the document: positions, units, and what it needs of the metrics' text.

/** A WAL position as a number; differences are exact. */
const lsn = (text) => {
  const [high, low] = String(text).split("/");
  return (BigInt("0x" + high) << 32n) + BigInt("0x" + low);
};
/** Bytes from one position to a later one. */
const between = (from, to) => Math.max(0, Number(lsn(to) - lsn(from)));

const count = (n) => (n == null ? "–" : Number(n).toLocaleString("en-US", { maximumFractionDigits: 0 }));
const scaled = (n, units, base) => {
  let at = 0;
  while (n >= base && at < units.length - 1) { n /= base; at++; }
  return (at === 0 || n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2)) + " " + units[at];
};
const bytes = (n) => (n == null ? "–" : scaled(n, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 1024));
/** A span of time, from seconds. */
const span = (s) => {
  if (s == null || !Number.isFinite(s)) return "–";
  if (s < 1e-3) return (s * 1e6).toFixed(0) + " µs";
  if (s < 1) return (s * 1e3).toFixed(s < 0.01 ? 2 : s < 0.1 ? 1 : 0) + " ms";
  if (s < 120) return s.toFixed(s < 10 ? 1 : 0) + " s";
  if (s < 7200) return (s / 60).toFixed(0) + " min";
  if (s < 172800) return (s / 3600).toFixed(1) + " h";
  return (s / 86400).toFixed(1) + " d";
};
const clock = (at) => new Date(at).toLocaleTimeString("en-GB");

/** The series of these metrics: [{name, labels, value}]. */
const series = (text, names) => {
  const found = [];
  for (const line of text.split("\n")) {
    const end = line.search(/[{ ]/);
    if (end < 1 || !names.has(line.slice(0, end))) continue;
    const close = line[end] === "{" ? line.lastIndexOf("}") : end - 1;
    const labels = {};
    if (line[end] === "{") {
      for (const [, label, value] of line.slice(end + 1, close).matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
        labels[label] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
      }
    }
    const word = line.slice(close + 2).split(" ")[0];
    found.push({ name: line.slice(0, end), labels, value: word === "+Inf" ? Infinity : word === "NaN" ? NaN : Number(word) });
  }
  return found;
};

const sum = (list) => list.reduce((total, one) => total + one.value, 0);

/** Cumulated counts by upper bound, over all label sets of a histogram. */
const buckets = (list) => {
  const by = new Map();
  for (const one of list) {
    const bound = one.labels.le === "+Inf" ? Infinity : Number(one.labels.le);
    by.set(bound, (by.get(bound) || 0) + one.value);
  }
  return by;
};

/** A quantile of what came between two readings of a histogram, straight within a bucket; null where nothing came. */
const quantile = (q, before, now) => {
  const grown = [...now].map(([bound, n]) => [bound, n - (before.get(bound) || 0)]).sort((a, b) => a[0] - b[0]);
  const total = grown.length ? grown[grown.length - 1][1] : 0;
  if (!(total > 0)) return null;
  let [low, below] = [0, 0];
  for (const [bound, n] of grown) {
    if (n >= q * total) {
      return bound === Infinity ? { at: low, beyond: true } : { at: low + ((bound - low) * (q * total - below)) / (n - below) };
    }
    [low, below] = [bound, n];
  }
  return null;
};

/** JSON whose integers beyond 2^53 stay as they are written. */
const parsed = (text) => JSON.parse(text, (_, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value);
/** A value as people read it. */
const plain = (value) => (value == null ? "NULL" : typeof value === "object" ? JSON.stringify(value) : String(value));
