import { useEffect, useReducer } from 'react';

/** The users who are typing now; renders again when they stop. */
export function useTypers(typing: Record<string, number>): string[] {
  const [, renderAgain] = useReducer((count: number) => count + 1, 0);
  const active = Object.entries(typing).filter(([, until]) => until > Date.now());
  const next = Math.min(...active.map(([, until]) => until));
  useEffect(() => {
    if (next === Infinity) return;
    const timer = setTimeout(renderAgain, next - Date.now() + 1);
    return () => clearTimeout(timer);
  }, [next]);
  return active.map(([user]) => user);
}
