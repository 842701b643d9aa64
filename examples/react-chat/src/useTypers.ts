import { useEffect, useReducer } from 'react';

/** Who types right now; renders again when that is over. */
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
